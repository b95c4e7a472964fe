//! Which step may follow which: the table of transitions, as data.
//!
//! [`crate::decide::decide`] makes no other, and the simulator makes all of them, or its tests fail.

use crate::step::Step;

impl Step {
    /// The steps that may be stored after this one. A step that may follow itself is begun anew: its
    /// effects are carried out again, and its waits start over.
    pub const fn next(self) -> &'static [Step] {
        use Step as S;
        match self {
            S::Pending => &[S::Install, S::ParkDeclare, S::AlonePull, S::Failed],
            S::Install => &[S::CutA, S::UndoTarget],
            S::CutA | S::Return => &[S::Divert, S::UndoTarget],
            S::Divert => &[S::Empty, S::UndoTarget],
            S::Empty => &[S::Return, S::CutB, S::UndoTarget],
            S::CutB | S::Recall => &[S::Drain, S::UndoTarget],
            S::Drain => &[S::Quiesce, S::UndoTarget],
            S::Quiesce => &[S::Recall, S::Arm, S::UndoTarget],
            S::Arm => &[S::Recall, S::Freeze, S::UndoTarget],
            S::Freeze => &[S::Recall, S::Continue, S::UndoTarget],
            S::Continue | S::ParkLeave | S::AloneFreeze => &[S::Transferring, S::UndoTarget],
            S::ParkDeclare => &[S::ParkStop, S::UndoTarget],
            S::ParkStop => &[S::ParkFreeze, S::UndoTarget],
            S::ParkFreeze => &[S::ParkLeave, S::UndoTarget],
            S::AlonePull => &[S::AloneFreeze, S::UndoTarget],
            S::Transferring => &[S::Order, S::Pull, S::UndoTarget],
            S::Pull => &[S::Vacate, S::MakeRoom, S::HopPrepare, S::UndoTarget],
            S::MakeRoom => &[S::HopPrepare, S::UndoTarget],
            S::HopPrepare => &[S::HopAdmit, S::Vacate, S::UndoTarget],
            S::HopAdmit => &[S::HopRetry, S::Replaying, S::Vacate, S::UndoTarget],
            S::HopRetry => &[S::HopPrepare, S::Vacate, S::UndoTarget],
            S::Order => &[S::Beside, S::UndoTarget],
            S::Beside => &[S::Replaying, S::Hand, S::UndoTarget],
            S::Vacate => &[S::Prepare, S::UndoTarget],
            S::Prepare => &[S::Admit],
            S::Admit => &[S::Retry, S::ReplayingCommitted, S::OpenCommitted, S::Retire],
            S::Retry => &[S::Prepare],
            S::Replaying => &[S::Replaying, S::ReplayingCommitted, S::Open, S::UndoTarget],
            S::ReplayingCommitted => &[S::OpenCommitted, S::Retire],
            S::Hand => &[S::OpenCommitted, S::UndoTarget],
            S::Open => &[S::Overlap, S::OpenCommitted, S::UndoTarget],
            S::Overlap => &[S::Replace, S::Hop, S::OverlapCommitted, S::UndoTarget],
            S::Hop | S::HopAgain => &[S::Install, S::UndoTarget],
            S::Replace => &[S::Retire, S::UndoTarget],
            S::OpenCommitted => &[S::OverlapCommitted, S::ReplaceCommitted, S::Retire],
            S::OverlapCommitted => &[S::ReplaceCommitted],
            S::ReplaceCommitted => &[S::Retire],
            S::Retire => &[S::Remove],
            S::Remove => &[S::Completed],
            S::UndoTarget => &[
                S::UndoClear,
                S::UndoWorkOff,
                S::UndoRegather,
                S::UndoRefeed,
                S::UndoReturn,
                S::UndoHeir,
                S::UndoRemove,
            ],
            S::UndoWorkOff => &[S::UndoWorkOff, S::UndoFetch, S::UndoDivert, S::UndoHeir],
            S::UndoFetch => &[S::UndoFetch, S::UndoWorkOff, S::UndoHeir],
            S::UndoDivert => &[S::UndoDivert, S::UndoRefeed, S::UndoHeir],
            S::UndoRegather => &[S::UndoRegather, S::UndoContinue, S::UndoSettle, S::UndoHeir],
            S::UndoContinue => &[S::UndoContinue, S::UndoUnfeed, S::UndoHeir],
            S::UndoHeir => &[
                S::UndoWorkOff,
                S::UndoRegather,
                S::UndoContinue,
                S::UndoSettle,
                S::UndoRework,
                S::UndoReturn,
                S::UndoSweep,
                S::UndoRefeed,
                S::UndoMoveRest,
                S::UndoRemove,
            ],
            S::UndoSweep => &[S::UndoUnfeed],
            S::UndoUnfeed => &[S::UndoUnfeed, S::UndoPurge, S::UndoHeir],
            S::UndoPurge => &[S::UndoRefeed, S::UndoHeir],
            S::UndoRefeed => &[S::UndoSettle, S::UndoHeir],
            S::UndoSettle => &[S::UndoRework, S::UndoReturn, S::UndoMoveRest, S::UndoHeir],
            S::UndoRework => &[S::UndoRework, S::UndoSettle, S::UndoHeir],
            S::UndoMoveRest => &[S::UndoMoveRest, S::UndoRemove],
            S::UndoReturn => &[S::UndoReturn, S::UndoRework, S::UndoRemove, S::UndoHeir],
            S::UndoClear => &[S::UndoRegather, S::UndoHeir],
            S::UndoRemove => &[S::HopAgain, S::UndoReturn, S::UndoHeir, S::UndoRemove, S::Failed],
            S::Completed | S::Failed => &[],
        }
    }

    /// The whole table: from, to.
    pub fn transitions() -> impl Iterator<Item = (Step, Step)> {
        Step::ALL.iter().flat_map(|&from| from.next().iter().map(move |&to| (from, to)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// All steps that may come after `first`.
    fn reachable(first: Step) -> BTreeSet<Step> {
        let mut found = BTreeSet::new();
        let mut open = vec![first];
        while let Some(step) = open.pop() {
            open.extend(step.next().iter().filter(|&&next| found.insert(next)));
        }
        found
    }

    fn back(step: Step) -> bool {
        step.phase() == "unwinding"
    }

    #[test]
    fn every_step_can_be_reached_and_has_an_end() {
        let from_the_beginning = reachable(Step::Pending);
        for &step in Step::ALL {
            let after = reachable(step);
            let over = matches!(step, Step::Completed | Step::Failed);
            assert_eq!(after.is_empty(), over, "{step}");
            assert!(from_the_beginning.contains(&step) || step == Step::Pending, "{step}");
            assert!(over || after.contains(&Step::Completed) || after.contains(&Step::Failed));
        }
    }

    #[test]
    fn a_migration_is_completed_or_undone_and_after_the_commit_point_only_completed() {
        // Each is entered with a commit in hand.
        let committed =
            [Step::Prepare, Step::OpenCommitted, Step::ReplayingCommitted, Step::Retire];
        for step in committed {
            assert!(!reachable(step).contains(&Step::Failed), "{step} can be undone");
        }
        // A second hop that is undone is tried again, and that alone leads on from the way back.
        let undone = reachable(Step::UndoTarget);
        let forward: Vec<&Step> = undone.iter().filter(|step| !back(**step)).collect();
        assert!(!forward.is_empty() && back(Step::UndoTarget));
        let from = |to: Step| Step::transitions().filter(move |pair| pair.1 == to);
        let led_on: Vec<(Step, Step)> = forward
            .iter()
            .flat_map(|step| from(**step))
            .filter(|(from, to)| back(*from) && !matches!(to, Step::Failed))
            .collect();
        assert_eq!(led_on, [(Step::UndoRemove, Step::HopAgain)]);
    }

    #[test]
    fn names_are_unique_and_begin_with_the_phase() {
        let names: BTreeSet<&str> = Step::ALL.iter().map(|step| step.name()).collect();
        assert_eq!(names.len(), Step::ALL.len());
        assert_eq!(Step::Freeze.to_string(), "checkpointing/freeze");
        assert_eq!(Step::Freeze.phase(), "checkpointing");
        assert_eq!(Step::Pending.phase(), "pending");
    }

    #[test]
    fn no_step_has_a_successor_twice() {
        for step in Step::ALL {
            let once: BTreeSet<&Step> = step.next().iter().collect();
            assert_eq!(once.len(), step.next().len(), "{step}");
        }
    }
}
