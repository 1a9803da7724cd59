//! Futex calls that cannot fault memory in.
//!
//! Where such a call has to change the word itself, the kernel may not wait for a fault to be
//! served, as it holds the lock of the futex's hash bucket: it says EFAULT when the word is swapped
//! out, and glibc aborts. The call has changed nothing then. So the word is brought in by a call that
//! can wait, and it is made again.

use linux_raw_sys::errno::EFAULT;
use linux_raw_sys::general as k;
use vswap_pager::address::PageRange;
use vswap_pager::mapping::Call;
use vswap_pager::sys::memory;

/// Bits of the operation that are not flags.
pub const COMMAND_MASK: u32 = !(k::FUTEX_PRIVATE_FLAG | k::FUTEX_CLOCK_REALTIME);

/// The commands that cannot fault memory in, as bits. All commands are below 32.
pub const CANNOT_FAULT: u32 = 1 << k::FUTEX_WAKE_OP
    | 1 << k::FUTEX_LOCK_PI
    | 1 << k::FUTEX_UNLOCK_PI
    | 1 << k::FUTEX_TRYLOCK_PI
    | 1 << k::FUTEX_WAIT_REQUEUE_PI
    | 1 << k::FUTEX_CMP_REQUEUE_PI
    | 1 << k::FUTEX_LOCK_PI2;

/// How often the word may be evicted again between being brought in and the call. Also the price of
/// an EFAULT with another reason (a timeout at a bad address), so there is an end to it.
const TRIES: usize = 100;

/// Whether a call is one of these.
pub fn cannot_fault(call: &Call) -> bool {
    let command = call.args[1] as u32 & COMMAND_MASK;
    call.number as u32 == k::__NR_futex && command < u32::BITS && CANNOT_FAULT >> command & 1 != 0
}

/// Makes the call, and brings the word in if it is not there. No lock is held and nothing of the
/// engine's is touched, so signals may come, and a stack that is paged will do.
pub fn on_call(call: &Call) -> isize {
    for _ in 0..TRIES {
        let value = call.pass();
        if value != -(EFAULT as isize) || !bring_in(call) {
            return value;
        }
    }
    -(EFAULT as isize)
}

/// Brings in the word that the call changes. `false` if there is no such memory, or under inline
/// faults, where the pager does not serve system calls: then EFAULT is the answer.
fn bring_in(call: &Call) -> bool {
    let [first, operation, _, _, second, _] = call.args;
    let word = match operation as u32 & COMMAND_MASK {
        k::FUTEX_WAKE_OP | k::FUTEX_WAIT_REQUEUE_PI | k::FUTEX_CMP_REQUEUE_PI => second,
        _ => first,
    };
    let page = PageRange::touching(word, size_of::<u32>());
    // SAFETY: populating does not change contents, and the call was to write to the word.
    unsafe { memory::advise(page.address(), page.bytes(), k::MADV_POPULATE_WRITE) }.is_ok()
}
