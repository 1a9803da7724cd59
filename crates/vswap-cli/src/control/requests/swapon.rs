//! Gives a run one more swap device.

use crate::args::SwapPlace;
use crate::control::protocol::Reply;

use super::Subject;

/// Opens it and hands it to the members, which use it within 10 ms.
pub fn answer(place: &SwapPlace, subject: &mut Subject<'_>) -> Reply {
    match subject.members.add_device(place) {
        Ok(device) => Reply::SwappedOn {
            filename: device.path.display().to_string(),
            size_bytes: device.limit(),
            priority: device.priority(),
        },
        Err(refusal) => {
            let (what, remedy) = refusal.parts();
            // What is said of the option holds for the argument.
            Reply::refused(what.trim_start_matches("--swap: "), remedy)
        }
    }
}
