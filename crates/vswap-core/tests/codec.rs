//! The codecs: every page comes back, and what is no compressed page is refused.

#[path = "corpus/mod.rs"]
mod corpus;

use std::sync::LazyLock;

use proptest::prelude::*;
use vswap_core::codec::{Codec, CodecKind, Corrupt, Lz4, Scratch};
use vswap_core::platform::MmapPlatform;
use vswap_core::{PAGE_SIZE, Page};

static TEXT: LazyLock<Page> = LazyLock::new(|| corpus::pages(1).remove(0));

const KINDS: [CodecKind; 8] = [
    CodecKind::Lz4,
    CodecKind::Zstd(-7),
    CodecKind::Zstd(-1),
    CodecKind::Zstd(1),
    CodecKind::Zstd(3),
    CodecKind::Zstd(9),
    CodecKind::Zstd(19),
    CodecKind::None,
];

fn scratch(kind: CodecKind) -> Scratch {
    Scratch::new(kind, &MmapPlatform).expect("address space")
}

fn noise(seed: u64) -> impl Iterator<Item = u64> {
    let mut state = seed | 1;
    std::iter::from_fn(move || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        Some(state ^ (state >> 29))
    })
}

/// Pages at the edges of what the formats can express.
fn adversarial() -> Vec<Page> {
    let page_of = |byte: &dyn Fn(usize) -> u8| Page(std::array::from_fn(byte));
    let random: Vec<u8> = noise(7).map(|word| (word >> 40) as u8).take(PAGE_SIZE).collect();
    let mut pages = vec![
        page_of(&|_| 0),
        page_of(&|_| 0xff),
        page_of(&|i| random[i]),
        page_of(&|i| i as u8),
        page_of(&|i| (i / 16) as u8),
        // Incompressible with runs at either end, and only the last bytes different.
        page_of(&|i| if i < 64 { 0 } else { random[i] }),
        page_of(&|i| if i > PAGE_SIZE - 64 { 0 } else { random[i] }),
        page_of(&|i| u8::from(i == PAGE_SIZE - 1)),
        page_of(&|i| u8::from(i == 0)),
        // Matches as far apart as a page allows.
        page_of(&|i| random[i % (PAGE_SIZE / 2)]),
        page_of(&|i| random[i % (PAGE_SIZE - 12)]),
    ];
    for period in [1, 2, 3, 5, 7, 8, 13, 64, 255, 256, 257] {
        pages.push(page_of(&|i| random[i % period]));
    }
    pages
}

fn all_pages() -> Vec<Page> {
    let mut pages = adversarial();
    pages.extend(corpus::pages(400));
    pages
}

fn assert_same(a: &Page, b: &Page) {
    assert!(a.0 == b.0, "pages differ");
}

#[test]
fn every_page_comes_back() {
    let pages = all_pages();
    for kind in KINDS {
        let mut codec = scratch(kind);
        // As much as an incompressible page can grow to.
        let mut out = [0; PAGE_SIZE + 64];
        let mut total = 0;
        for page in &pages {
            let len = codec.compress(page, &mut out).expect("room for any page");
            let mut back = Page([0xa5; PAGE_SIZE]);
            codec.decompress(&out[..len], &mut back).expect("own output");
            assert_same(page, &back);
            total += len;
        }
        println!("{kind:?}: {:.3}", (pages.len() * PAGE_SIZE) as f64 / total as f64);
        if kind != CodecKind::None {
            assert!(total < pages.len() * PAGE_SIZE * 3 / 4, "{kind:?} hardly compresses");
        }
    }
}

#[test]
fn output_stays_within_its_room_and_a_refusal_leaves_the_codec_usable() {
    for kind in KINDS {
        let mut codec = scratch(kind);
        for page in adversarial() {
            let mut full = [0; PAGE_SIZE + 64];
            let len = codec.compress(&page, &mut full).expect("room for any page");
            for room in [0, 1, 7, len / 2, len - 1] {
                let mut out = [0x5a; PAGE_SIZE + 64];
                assert_eq!(codec.compress(&page, &mut out[..room]), None, "{kind:?} {room}");
                assert!(out[room..].iter().all(|&byte| byte == 0x5a));
            }
            let mut again = [0; PAGE_SIZE + 64];
            assert_eq!(codec.compress(&page, &mut again), Some(len));
            assert!(full == again, "{kind:?} depends on what was compressed before");
        }
    }
}

#[test]
fn lz4_is_the_format_that_others_read_and_write() {
    let mut codec = scratch(CodecKind::Lz4);
    let mut out = [0; PAGE_SIZE + 64];
    for page in all_pages() {
        let len = codec.compress(&page, &mut out).expect("room for any page");
        let theirs = lz4_flex::block::decompress(&out[..len], PAGE_SIZE).expect("valid block");
        assert!(theirs == page.0);
        let theirs = lz4_flex::block::compress(&page.0);
        let mut back = Page::ZERO;
        Lz4::restore(&theirs, &mut back).expect("valid block");
        assert_same(&page, &back);
    }
}

#[test]
fn blocks_of_other_lengths_are_corrupt() {
    let mut page = Page::ZERO;
    for len in [0, 1, PAGE_SIZE - 1, PAGE_SIZE + 1, 2 * PAGE_SIZE] {
        let bytes = vec![3; len];
        let block = lz4_flex::block::compress(&bytes);
        assert_eq!(Lz4::restore(&block, &mut page), Err(Corrupt), "lz4 {len}");
        assert_eq!(scratch(CodecKind::None).decompress(&bytes, &mut page), Err(Corrupt));
    }
    // Two frames make two pages, half of one makes none.
    let mut codec = scratch(CodecKind::Zstd(1));
    let mut out = [0; PAGE_SIZE];
    let len = codec.compress(&Page::ZERO, &mut out).expect("zeros compress");
    assert_eq!(codec.decompress(&out[..len].repeat(2), &mut page), Err(Corrupt));
    for part in 0..len {
        assert_eq!(codec.decompress(&out[..part], &mut page), Err(Corrupt));
    }
    assert_eq!(codec.decompress(&out[..len], &mut page), Ok(()));
}

/// Decodes bytes into the middle of three pages; whatever the verdict, the outer two stay.
fn decode_guarded(kind: CodecKind, bytes: &[u8]) -> Result<Page, Corrupt> {
    let mut pages = [Page([0x11; PAGE_SIZE]), Page([0x22; PAGE_SIZE]), Page([0x33; PAGE_SIZE])];
    let verdict = scratch(kind).decompress(bytes, &mut pages[1]);
    assert!(pages[0].0.iter().all(|&byte| byte == 0x11));
    assert!(pages[2].0.iter().all(|&byte| byte == 0x33));
    verdict.map(|()| pages[1].clone())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn garbage_is_refused_or_decodes_to_what_the_oracle_says(
        bytes in prop::collection::vec(any::<u8>(), 0..PAGE_SIZE)
    ) {
        let oracle = lz4_flex::block::decompress(&bytes, PAGE_SIZE).ok();
        if let Ok(page) = decode_guarded(CodecKind::Lz4, &bytes) {
            // The C library may be more lenient at a block's end, but never about its length.
            prop_assert!(oracle.is_none_or(|theirs| theirs == page.0));
        }
        let _ = decode_guarded(CodecKind::Zstd(1), &bytes);
    }

    #[test]
    fn damage_never_changes_the_length_of_a_page(
        at in any::<prop::sample::Index>(), flip in 1..=255u8, cut in any::<prop::sample::Index>()
    ) {
        let page = &*TEXT;
        for kind in [CodecKind::Lz4, CodecKind::Zstd(1)] {
            let mut out = [0; PAGE_SIZE];
            let len = scratch(kind).compress(page, &mut out).expect("text compresses");
            prop_assert_eq!(decode_guarded(kind, &out[..cut.index(len)]).err(), Some(Corrupt));
            out[at.index(len)] ^= flip;
            let _ = decode_guarded(kind, &out[..len]);
        }
    }
}
