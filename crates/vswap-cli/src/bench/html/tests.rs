use super::super::report::{Conditions, Run};
use super::super::rows::Measurement;
use super::super::workload::{Latencies, PhaseTime};
use super::*;

/// What an XML parser would insist on: every element is closed, in the order of nesting, and the
/// special characters of texts and attributes are escaped. Returns the names of the elements.
fn elements(page: &str) -> Vec<&str> {
    let (mut open, mut found) = (Vec::new(), Vec::new());
    let body = page.strip_prefix("<!DOCTYPE html>").expect("a document type");
    for part in body.split('<').skip(1) {
        let (tag, text) = part.split_once('>').unwrap_or_else(|| panic!("unclosed: <{part}"));
        assert!(!text.contains('>'), "a bare > in {text:?}");
        assert!(
            text.replace("&amp;", "")
                .replace("&lt;", "")
                .replace("&gt;", "")
                .replace("&quot;", "")
                .find('&')
                .is_none()
        );
        assert!(tag.matches('"').count().is_multiple_of(2), "an open attribute in {tag:?}");
        let name = tag.trim_start_matches('/').split([' ', '\n']).next().unwrap();
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "{tag}");
        } else if !tag.ends_with('/') {
            open.push(name);
        }
        found.push(name);
    }
    assert_eq!(open, [""; 0], "left open");
    found
}

fn report() -> Report {
    let mut latencies = Latencies::default();
    (0..1000).for_each(|ns| latencies.record(ns * ns));
    let rows = [
        (Row::Plain, None),
        (Row::ZramLz4, Some(0)),
        (Row::ZswapLzo, Some(3)),
        (Row::Inline, None),
    ];
    let runs: Vec<_> = rows
        .into_iter()
        .flat_map(|(row, page_cluster)| [1, 2].map(|threads| (row, page_cluster, threads)))
        .map(|(row, page_cluster, threads)| {
            let fill = PhaseTime { phase: Phase::Fill, ns: 100.0, latencies: None };
            let latencies = Some(latencies.clone());
            let read = PhaseTime { phase: Phase::RandomRead, ns: 200.0, latencies };
            let measurement = Measurement { phases: vec![fill, read], ..Measurement::default() };
            Run { row, page_cluster, threads, only: None, measurement }
        })
        .collect();
    let absence = |row, reason: &str| Absence { row, phase: None, reason: reason.into() };
    let conditions = Conditions { processor: "\"A & B\" <C>".into(), ..Conditions::default() };
    let skipped = vec![absence(Row::ZswapLz4, "no lz4 & no file <x>")];
    Report::new(conditions, &runs, &[], skipped, vec![absence(Row::Handoff, "killed")])
}

#[test]
fn the_page_is_well_formed_whatever_it_is_told() {
    let page = render(&report());
    let elements = elements(&page);
    // A bar plot for each of two phases and numbers of threads, and the latencies of one phase.
    assert_eq!(elements.iter().filter(|name| **name == "svg").count(), 2 * 6);
    assert!(page.contains("&quot;A &amp; B&quot; &lt;C&gt;"));
}

#[test]
fn the_page_has_every_row_of_every_phase() {
    let report = report();
    let page = render(&report);
    let figures: Vec<_> = page
        .split("<figure>")
        .skip(1)
        .map(|rest| rest.split("</figure>").next().unwrap())
        .collect();
    assert_eq!(figures.len(), 6);
    for row in [Row::Plain, Row::ZramLz4, Row::ZswapLzo, Row::Inline] {
        assert!(figures.iter().all(|figure| figure.contains(&row.title())), "{row:?}");
    }
    for absence in report.skipped.iter().chain(&report.failed) {
        assert!(page.contains(&format!("<li>{}: ", absence.title())));
    }
}

#[test]
fn the_page_needs_nothing_from_elsewhere() {
    let page = render(&report());
    for word in ["<script", "<link", "src=", "href=", "url(", "@import"] {
        assert!(!page.contains(word), "{word}");
    }
    // The name of SVG is an address, but nobody looks there.
    assert_eq!(
        page.matches("http").count(),
        page.matches("xmlns=\"http://www.w3.org/2000/svg\"").count()
    );
}
