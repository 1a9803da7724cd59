use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::process::Command;
use std::string::ToString;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

const PAGES: u32 = 100;

fn put(page: &mut Page, at: usize, value: u32) {
    page.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
}

fn sign(page: &mut Page, signature: &[u8]) {
    page.0[SIGNATURE_AT..].fill(0);
    page.0[SIGNATURE_AT..][..signature.len()].copy_from_slice(signature);
}

fn header(bad: &[u32]) -> Page {
    let mut page = Page::ZERO;
    sign(&mut page, SWAP_V1);
    put(&mut page, VERSION_AT, 1);
    put(&mut page, LAST_PAGE_AT, PAGES - 1);
    put(&mut page, BAD_COUNT_AT, bad.len() as u32);
    for (n, &bad) in bad.iter().enumerate() {
        put(&mut page, BAD_PAGES_AT + 4 * n, bad);
    }
    page
}

fn parse(page: &Page) -> Result<SwapArea<'_>, HeaderError> {
    SwapArea::parse(page, PAGES.into(), AreaKind::BlockDevice)
}

fn refusal(page: &Page) -> HeaderError {
    parse(page).expect_err("the header is refused")
}

/// A swap area made by `mkswap`; `None` where there is no such program.
fn made_by_mkswap(name: &str, arguments: &[&str]) -> Option<Page> {
    let path = std::env::temp_dir().join(std::format!("vswap-{name}-{}", std::process::id()));
    File::create(&path).unwrap().set_len(u64::from(PAGES) * PAGE_SIZE as u64).unwrap();
    let programs = ["/usr/sbin/mkswap", "/sbin/mkswap", "/usr/bin/mkswap"].map(PathBuf::from);
    let program = programs.into_iter().find(|program| program.exists());
    let page = program.map(|program| {
        let output = Command::new(program).args(arguments).arg(&path).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let mut page = Page::ZERO;
        File::open(&path).unwrap().read_exact(&mut page.0).unwrap();
        page
    });
    std::fs::remove_file(&path).unwrap();
    if page.is_none() {
        std::eprintln!("SKIPPED: there is no mkswap here");
    }
    page
}

#[test]
fn what_mkswap_writes_is_read() {
    let uuid = "01234567-89ab-cdef-0123-456789abcdef";
    let Some(page) = made_by_mkswap("golden", &["-L", "cold data", "-U", uuid]) else { return };
    let area = SwapArea::parse(&page, PAGES.into(), AreaKind::File).unwrap();
    assert_eq!(area.pages, u64::from(PAGES));
    assert_eq!(area.bad_pages().count(), 0);
    assert_eq!(area.label(), b"cold data");
    assert_eq!(area.uuid()[..4], [0x01, 0x23, 0x45, 0x67]);
    assert_eq!(area.uuid()[15], 0xef);
}

#[test]
fn bad_pages_in_what_mkswap_writes_are_read() {
    let Some(mut page) = made_by_mkswap("bad", &[]) else { return };
    put(&mut page, BAD_COUNT_AT, 2);
    put(&mut page, BAD_PAGES_AT, 7);
    put(&mut page, BAD_PAGES_AT + 4, PAGES - 1);
    assert_eq!(parse(&page).unwrap().bad_pages().collect::<Vec<_>>(), [7, PAGES - 1]);
    assert_eq!(parse(&page).unwrap().label(), b"");
}

#[test]
fn an_area_for_other_pages_has_no_signature_here() {
    let Some(page) = made_by_mkswap("pages", &["--pagesize", "8192"]) else { return };
    assert_eq!(refusal(&page), HeaderError::NoSignature);
}

#[test]
fn a_file_without_header_is_refused() {
    assert_eq!(refusal(&Page::ZERO), HeaderError::NoSignature);
    assert_eq!(refusal(&Page([0xff; PAGE_SIZE])), HeaderError::NoSignature);
}

#[test]
fn hibernation_images_are_named() {
    for image in IMAGES {
        let mut page = header(&[]);
        sign(&mut page, image);
        assert_eq!(refusal(&page), HeaderError::Hibernation { signature: image });
    }
    let mut page = header(&[]);
    page.0[..8].copy_from_slice(&TUXONICE);
    assert_eq!(refusal(&page).to_string(), "a hibernation image (TuxOnIce)");
}

#[test]
fn other_formats_are_named() {
    let mut page = header(&[]);
    sign(&mut page, SWAP_V0);
    assert_eq!(refusal(&page), HeaderError::OldFormat);

    let mut page = header(&[]);
    put(&mut page, VERSION_AT, 2);
    assert_eq!(refusal(&page), HeaderError::Version(2));
    put(&mut page, VERSION_AT, 1u32.swap_bytes());
    assert_eq!(refusal(&page), HeaderError::ByteSwapped);
}

#[test]
fn the_area_must_fit_the_file() {
    let page = header(&[]);
    assert_eq!(parse(&page).unwrap().pages, u64::from(PAGES));
    let longer = SwapArea::parse(&page, u64::MAX, AreaKind::File);
    assert_eq!(longer.unwrap().pages, u64::from(PAGES));
    let shorter = SwapArea::parse(&page, u64::from(PAGES) - 1, AreaKind::File);
    assert_eq!(shorter.unwrap_err(), HeaderError::Truncated { expected: 100, actual: 99 });

    let mut page = page;
    put(&mut page, LAST_PAGE_AT, 0);
    assert_eq!(refusal(&page), HeaderError::Empty);
    put(&mut page, LAST_PAGE_AT, u32::MAX);
    assert_eq!(refusal(&page), HeaderError::Truncated { expected: 1 << 32, actual: 100 });
}

#[test]
fn bad_pages_lie_in_the_area() {
    assert_eq!(refusal(&header(&[5, 0])), HeaderError::BadPageOutOfRange(0));
    assert_eq!(refusal(&header(&[PAGES])), HeaderError::BadPageOutOfRange(PAGES));
    let all: Vec<u32> = (1..PAGES).collect();
    assert_eq!(refusal(&header(&all)), HeaderError::NoUsablePages);
    assert_eq!(parse(&header(&all[1..])).unwrap().bad_pages().count(), PAGES as usize - 2);
}

#[test]
fn the_list_of_bad_pages_is_bounded() {
    let mut page = header(&[]);
    put(&mut page, BAD_COUNT_AT, BAD_PAGES_MAX as u32 + 1);
    assert_eq!(refusal(&page), HeaderError::TooManyBadPages(638));
    // The last possible one ends where the signature starts, or earlier.
    put(&mut page, LAST_PAGE_AT, 5000);
    put(&mut page, BAD_COUNT_AT, BAD_PAGES_MAX as u32);
    for n in 0..BAD_PAGES_MAX {
        put(&mut page, BAD_PAGES_AT + 4 * n, 1 + n as u32);
    }
    let area = SwapArea::parse(&page, 5001, AreaKind::BlockDevice).unwrap();
    assert_eq!(area.bad_pages().last(), Some(BAD_PAGES_MAX as u32));
}

#[test]
fn a_regular_file_has_no_bad_pages() {
    let page = header(&[3]);
    let area = SwapArea::parse(&page, PAGES.into(), AreaKind::File);
    assert_eq!(area.unwrap_err(), HeaderError::BadPagesInFile);
}

/// Bytes that get past the first checks often enough for all of them to be reached.
fn any_header() -> impl Strategy<Value = Page> {
    let noise = proptest::collection::vec(any::<u8>(), PAGE_SIZE);
    let small = || prop_oneof![any::<u32>(), 0..4u32, 600..700u32];
    let signature = prop_oneof![
        6 => Just(Some(SWAP_V1)),
        1 => Just(Some(SWAP_V0)),
        1 => (0..IMAGES.len()).prop_map(|n| Some(IMAGES[n])),
        1 => Just(None),
    ];
    let bad = proptest::collection::vec(small(), 0..8);
    let version = prop_oneof![4 => Just(1), 1 => any::<u32>()];
    (noise, signature, version, small(), small(), bad).prop_map(
        |(noise, signature, version, last_page, bad_count, bad)| {
            let mut page = Page::ZERO;
            page.0.copy_from_slice(&noise);
            put(&mut page, VERSION_AT, version);
            put(&mut page, LAST_PAGE_AT, last_page);
            put(&mut page, BAD_COUNT_AT, bad_count);
            for (n, bad) in bad.into_iter().enumerate() {
                put(&mut page, BAD_PAGES_AT + 4 * n, bad);
            }
            if let Some(signature) = signature {
                sign(&mut page, signature);
            }
            page
        },
    )
}

proptest! {
    #[test]
    fn any_bytes_are_an_area_within_the_device_or_refused(
        page in any_header(),
        length in prop_oneof![any::<u64>(), 0..1000u64],
        file in any::<bool>(),
    ) {
        let kind = if file { AreaKind::File } else { AreaKind::BlockDevice };
        match SwapArea::parse(&page, length, kind) {
            Ok(area) => {
                prop_assert!(area.pages >= 2 && area.pages <= length);
                prop_assert!(area.bad_pages().all(|page| page > 0 && u64::from(page) < area.pages));
                prop_assert!(area.bad_pages().count() < area.pages as usize - 1);
                prop_assert!(area.label().len() <= 16);
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }
}
