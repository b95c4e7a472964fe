//! What a row is worth: against the same fault without a migration, where that was tried.

use super::fault::{End, Fault};
use super::{Row, Trial};

/// A migration itself holds up its messages for less than this, in milliseconds.
const OWN_PAUSE: u64 = 3_000;
/// Until another operator leads, in milliseconds.
const SUCCEEDED: u64 = 5_000;

/// `pass`, or what is not as it should be.
pub(super) fn of(trial: &Trial, row: &Row, controls: &[Row]) -> String {
    if row.phase.is_none() {
        return "pass".to_owned();
    }
    let of_control = name_of_control(trial);
    let control = controls.iter().find(|it| it.fault == of_control && it.phase.is_none());
    let nothing = Row::default();
    let beside = control.unwrap_or(&nothing);
    let mut wrong = Vec::new();
    // How many were under way in that moment is chance, with and without a migration.
    let again = if trial.fault.delivers_again() { row.again } else { 0 };
    if row.lost > beside.lost
        || row.duplicated.saturating_sub(again) > beside.duplicated
        || row.reordered > beside.reordered
    {
        wrong.push("messages".to_owned());
    }
    if !ended_well(&trial.fault, row) {
        wrong.push(format!("ended {}", row.outcome));
    }
    if row.fresh && !trial.fault.destroys() {
        wrong.push("another process".to_owned());
    }
    if row.leftovers.iter().any(|left| !left_anyway(left, beside)) {
        wrong.push("leftovers".to_owned());
    }
    // One process after the other is away between them, and so is one that is started anew.
    let away = trial.fault.destroys() || trial.asked["migrationStrategy"] == "Sequential";
    // A cut of the table has none.
    let judged = controls.iter().any(|it| it.phase.is_none());
    if judged && !away {
        let killed = matches!(trial.fault, Fault::OperatorKilled(_));
        let own = OWN_PAUSE + if killed { SUCCEEDED } else { 0 };
        if row.pause_ms > beside.pause_ms + own {
            wrong.push("pause".to_owned());
        }
        if row.failed_probes > beside.failed_probes {
            wrong.push("probes".to_owned());
        }
    }
    if wrong.is_empty() { "pass".to_owned() } else { wrong.join(", ") }
}

/// A pod that is deleted leaves its control queue behind, as it would without a migration.
fn left_anyway(left: &str, beside: &Row) -> bool {
    const CONTROL: &str = "ms2m.control.";
    left.starts_with(CONTROL) && beside.leftovers.iter().any(|it| it.starts_with(CONTROL))
}

/// Whichever copy is the one that consumes: without a migration there is one.
fn name_of_control(trial: &Trial) -> String {
    let fault = match trial.fault {
        Fault::CopyCut(End::Target, seconds) => Fault::CopyCut(End::Source, seconds),
        ref fault => fault.clone(),
    };
    Trial { fault, ..trial.clone() }.name()
}

fn ended_well(fault: &Fault, row: &Row) -> bool {
    match row.outcome.as_str() {
        "Completed" => true,
        "Failed" if row.message.starts_with("SourceLost") => fault.takes_the_source(),
        "Failed" => row.undone,
        "Gone" => matches!(fault, Fault::MigrationDeleted | Fault::MigrationForced),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(fault: Fault) -> Trial {
        Trial::of(fault, Some("Finalizing"))
    }

    fn row(trial: &Trial) -> Row {
        let (fault, phase) = trial.key();
        Row { fault, phase, outcome: "Completed".to_owned(), ..Row::default() }
    }

    /// A consumer that was cut off for ten seconds without any migration.
    fn control() -> Row {
        let (fault, phase) = Trial::of(Fault::CopyCut(End::Source, 10), None).key();
        Row { fault, phase, pause_ms: 11_000, duplicated: 2, ..Row::default() }
    }

    #[test]
    fn nothing_may_be_worse_than_without_a_migration() {
        let cut = trial(Fault::CopyCut(End::Target, 10));
        let good = Row { pause_ms: 12_000, duplicated: 2, ..row(&cut) };
        assert_eq!(of(&cut, &good, &[control()]), "pass");
        let worse = Row { pause_ms: 90_000, reordered: 1, failed_probes: 1, ..good };
        assert_eq!(of(&cut, &worse, &[control()]), "messages, pause, probes");
    }

    #[test]
    fn what_the_broker_delivers_again_is_no_migrations_doing() {
        let restart = trial(Fault::BrokerRestarts);
        let found = Row { duplicated: 1, redelivered: 1, again: 1, ..row(&restart) };
        assert_eq!(of(&restart, &found, &[]), "pass");
        let twice = Row { duplicated: 2, ..found.clone() };
        assert_eq!(of(&restart, &twice, &[]), "messages");
        let killed = trial(Fault::ProcessKilled(End::Target));
        assert_eq!(of(&killed, &found, &[]), "messages", "no connection of the survivor's ended");
    }

    #[test]
    fn without_controls_times_are_not_judged_and_messages_are() {
        let cut = trial(Fault::CopyCut(End::Target, 10));
        let slow = Row { pause_ms: 90_000, failed_probes: 7, ..row(&cut) };
        assert_eq!(of(&cut, &slow, &[]), "pass");
        let others = [row(&trial(Fault::BrokerRestarts))];
        assert_eq!(of(&cut, &slow, &others), "pass");
        assert_eq!(of(&cut, &Row { duplicated: 1, ..slow }, &[]), "messages");
    }

    #[test]
    fn the_control_queue_of_a_deleted_pod_is_left_anyway() {
        let deleted = trial(Fault::PodDeleted(End::Source));
        let left = |names: &[&str]| names.iter().map(|it| (*it).to_owned()).collect();
        let found = Row { leftovers: left(&["ms2m.control.a"]), ..row(&deleted) };
        assert_eq!(of(&deleted, &found, &[]), "leftovers");
        let (fault, _) = deleted.key();
        let before = left(&["ms2m.control.b"]);
        let beside = [Row { fault, phase: None, leftovers: before, ..row(&deleted) }];
        assert_eq!(of(&deleted, &found, &beside), "pass");
        let more = Row { leftovers: left(&["ms2m.control.a", "ms2m.lock.q"]), ..found };
        assert_eq!(of(&deleted, &more, &beside), "leftovers");
    }

    #[test]
    fn a_failure_is_good_only_when_everything_was_undone() {
        let full = trial(Fault::DiskFull);
        let failed = Row { outcome: "Failed".to_owned(), ..row(&full) };
        assert_eq!(of(&full, &failed, &[]), "ended Failed");
        let undone = Row { undone: true, ..failed };
        assert_eq!(of(&full, &undone, &[]), "pass");
        let lost = Row { message: "SourceLost: the source pod is gone".to_owned(), ..undone };
        assert_eq!(of(&full, &lost, &[]), "ended Failed");
        assert_eq!(of(&trial(Fault::PowerOff(End::Source)), &lost, &[]), "pass");
        assert_eq!(of(&trial(Fault::PowerOff(End::Target)), &lost, &[]), "ended Failed");
        let hung = Row { outcome: "Hung".to_owned(), leftovers: vec!["a".into()], ..row(&full) };
        assert_eq!(of(&full, &hung, &[]), "ended Hung, leftovers");
    }
}
