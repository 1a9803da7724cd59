//! Which runs a round has for a row: with which read-ahead, and which phases together.

use super::rows::Row;
use super::workload::Phase;

/// One run of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Of a kernel row.
    pub page_cluster: Option<u8>,
    /// That run one after the other.
    pub phases: Vec<Phase>,
    /// The phase that the run is about, if that is one alone.
    pub only: Option<Phase>,
}

/// The phases that run one after the other, or those of the run for one.
pub fn phases(wanted: &[Phase], only: Option<Phase>) -> Vec<Phase> {
    if let Some(phase) = only {
        return Phase::in_order(&[phase]);
    }
    let apart = wanted.iter().copied().filter(|phase| *phase != Phase::ForkReread);
    apart.collect()
}

/// The runs whose limits are found one by one: what a fork takes is not what the others take.
pub fn kinds(wanted: &[Phase]) -> Vec<Option<Phase>> {
    let forks = wanted.contains(&Phase::ForkReread).then_some(Some(Phase::ForkReread));
    std::iter::once(None).chain(forks).collect()
}

/// The runs of a row. A kernel row is run with and without read-ahead, and each phase shows the better.
/// A quick bench takes each only for the phases that it is known to suit, and so does a row that is
/// slow. Forks have runs of their own: a peer that has no room for the data of two processes still has
/// the other phases.
pub fn runs(row: Row, quick: bool, wanted: &[Phase]) -> Vec<Planned> {
    let phases = phases(wanted, None);
    let run = |page_cluster, phases| Planned { page_cluster, phases, only: None };
    let mut runs = match (row.is_kernel(), quick || row.is_slow()) {
        (false, _) => vec![run(None, phases)],
        (true, false) => vec![run(Some(0), phases.clone()), run(Some(3), phases)],
        (true, true) => {
            let (ordered, random): (Vec<_>, Vec<_>) =
                phases.iter().copied().partition(|phase| phase.is_ordered());
            let runs = [run(Some(3), ordered), run(Some(0), Phase::in_order(&random))];
            runs.into_iter().filter(|run| !run.phases.is_empty()).collect()
        }
    };
    runs.extend(kinds(wanted).into_iter().flatten().map(|phase| Planned {
        page_cluster: row.is_kernel().then_some(3),
        phases: self::phases(wanted, Some(phase)),
        only: Some(phase),
    }));
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(row: Row, quick: bool, phases: &[Phase]) -> Vec<(Option<u8>, Vec<Phase>)> {
        let runs = runs(row, quick, phases).into_iter().filter(|run| run.only.is_none());
        runs.map(|run| (run.page_cluster, run.phases)).collect()
    }

    #[test]
    fn a_quick_bench_takes_each_read_ahead_only_where_it_helps() {
        let quick = |phases: &[Phase]| pairs(Row::ZramLz4, true, phases);
        assert_eq!(
            quick(&Phase::BASIC),
            [
                (Some(3), vec![Phase::Fill, Phase::OrderedRead]),
                (Some(0), vec![Phase::Fill, Phase::RandomRead, Phase::RandomWrite]),
            ]
        );
        assert_eq!(quick(&[Phase::Fill]), [(Some(3), vec![Phase::Fill])]);
        assert_eq!(quick(&Phase::PROGRAMS), [(Some(0), Phase::PROGRAMS.to_vec())]);
        assert_eq!(pairs(Row::SwapFile, false, &Phase::BASIC), quick(&Phase::BASIC));
        assert_eq!(pairs(Row::Inline, true, &Phase::PATTERNS).len(), 1);
        assert_eq!(pairs(Row::ZramLz4, false, &Phase::BASIC).len(), 2);
    }

    #[test]
    fn forks_run_apart_from_the_other_phases() {
        for row in [Row::Plain, Row::ZramLz4, Row::SwapFile, Row::Handoff] {
            let all = runs(row, false, &Phase::PATTERNS);
            let (apart, with_others): (Vec<_>, Vec<_>) =
                all.into_iter().partition(|run| run.phases.contains(&Phase::ForkReread));
            assert_eq!(apart.len(), 1);
            assert_eq!(apart[0].phases, [Phase::Fill, Phase::ForkReread]);
            assert_eq!(apart[0].only, Some(Phase::ForkReread));
            let run = |phase| with_others.iter().any(|run| run.phases.contains(&phase));
            assert!(Phase::PATTERNS.into_iter().all(|p| run(p) || p == Phase::ForkReread));
        }
        assert_eq!(kinds(&Phase::PATTERNS), [None, Some(Phase::ForkReread)]);
        assert_eq!(kinds(&Phase::BASIC), [None]);
    }
}
