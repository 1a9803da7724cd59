//! No codec asks the C library for memory.
//!
//! This program's `malloc` and its like stand before those of libc, for the C code of the codecs as
//! for everybody else, and count what a marked thread asks for.

use std::cell::Cell;
use std::ffi::c_void;

use vswap_core::codec::{Codec, CodecKind, Scratch};
use vswap_core::platform::MmapPlatform;
use vswap_core::{PAGE_SIZE, Page};

thread_local! {
    static COUNTED: Cell<Option<u32>> = const { Cell::new(None) };
}

fn count() {
    COUNTED.set(COUNTED.get().map(|n| n + 1));
}

unsafe extern "C" {
    fn __libc_malloc(len: usize) -> *mut c_void;
    fn __libc_calloc(n: usize, len: usize) -> *mut c_void;
    fn __libc_realloc(old: *mut c_void, len: usize) -> *mut c_void;
}

// SAFETY, for the three: they are what they replace, by the names under which glibc keeps it.
#[unsafe(no_mangle)]
unsafe extern "C" fn malloc(len: usize) -> *mut c_void {
    count();
    // SAFETY: see above.
    unsafe { __libc_malloc(len) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn calloc(n: usize, len: usize) -> *mut c_void {
    count();
    // SAFETY: see above.
    unsafe { __libc_calloc(n, len) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn realloc(old: *mut c_void, len: usize) -> *mut c_void {
    count();
    // SAFETY: see above.
    unsafe { __libc_realloc(old, len) }
}

fn counted(work: impl FnOnce()) -> u32 {
    COUNTED.set(Some(0));
    work();
    COUNTED.take().unwrap()
}

#[test]
fn codecs_never_call_malloc() {
    assert_eq!(counted(|| drop(std::hint::black_box(Box::new(1)))), 1, "the counter works");
    for kind in (-7..=19).map(CodecKind::Zstd).chain([CodecKind::Lz4, CodecKind::None]) {
        let calls = counted(|| {
            let mut codec = Scratch::new(kind, &MmapPlatform).expect("address space");
            let mut out = [0; PAGE_SIZE + 64];
            for seed in 0..20u64 {
                let byte = |i| ((i as u64 + seed).wrapping_mul(seed * 0x9e37_79b9) >> 9) as u8;
                let page = Page(std::array::from_fn(byte));
                assert!(codec.compress(&page, &mut []).is_none());
                let len = codec.compress(&page, &mut out).expect("room for any page");
                let mut back = Page::ZERO;
                codec.decompress(&out[..len], &mut back).expect("own output");
                assert!(back.0 == page.0);
                let _ = codec.decompress(&out[..len / 2], &mut back);
            }
        });
        assert_eq!(calls, 0, "{kind:?}");
    }
}
