//! What a fork does to a device: both processes refer to what was written before.

use super::Space;
use super::cluster::State;
use super::extents::ExtentSource;
use super::geometry::ClusterId;
use super::lists::{Headers, Lists};
use crate::platform::Platform;
use crate::sync::Ordering;

/// Which of the two processes a fork left this one to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// It goes on with what was free.
    Parent,
    /// It starts with nothing: its first object needs an extent of its own.
    Child,
}

impl<P: Platform, S: ExtentSource> Space<P, S> {
    /// Seals what is on the device, after a fork, in both processes.
    ///
    /// Either one can load and free what was written before. Its slots are never used again by
    /// either: a free only counts. The slots that were free are the parent's. In clusters that held
    /// something it uses each of them once more, since nobody can tell later which objects
    /// were the child's too. The child forgets all that holds nothing, and gives back an
    /// extent when it has freed all that it knew there; the parent likewise, if nothing newer is
    /// there. An extent that both gave back is whole again, so what a seal costs comes back with
    /// time, or with compaction.
    ///
    /// Until then the source counts the child as a second holder of everything that the parent
    /// held; it must know of the child before this is called there.
    ///
    /// No other call may run at the same time, nor while the process forks. Every [`super::DeviceLocal`] forgets its clusters.
    pub fn seal(&self, side: Side) {
        self.epoch.fetch_add(1, Ordering::Relaxed);
        let mut lists = self.lists.lock(&self.platform);
        for cluster in self.leased() {
            match side {
                Side::Parent => self.seal_in_parent(&mut lists, cluster),
                Side::Child => self.seal_in_child(&mut lists, cluster),
            }
        }
        lists.spare = None;
        if side == Side::Child {
            // What was being emptied is the parent's to go on with.
            self.compacting.store(false, Ordering::Relaxed);
        }
        drop(lists);
        if side == Side::Child {
            self.trim();
        }
    }

    fn seal_in_parent(&self, lists: &mut Lists, cluster: ClusterId) {
        let header = self.header(cluster);
        let now = header.now();
        if !now.state.in_use() {
            return;
        }
        if now.objects > 0 {
            header.change(|word| word.sealed = true);
        }
        if now.state == State::Owned {
            lists.set_state(self, cluster, State::Full);
        }
        // An extent that has nothing now is returned by `trim`: that needs a lock which comes
        // before that of the lists.
        self.settle_locked(lists, cluster);
    }

    fn seal_in_child(&self, lists: &mut Lists, cluster: ClusterId) {
        let header = self.header(cluster);
        let held = header.now().objects > 0;
        lists.set_state(self, cluster, if held { State::Foreign } else { State::Dead });
        header.change(|word| word.sealed = true);
    }
}
