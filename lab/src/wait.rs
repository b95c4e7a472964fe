//! Waiting, always with a deadline and always with the log that matters.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use crate::{
    command::tail,
    component::Component,
    error::{LabError, Result},
    machine::Machine,
};

const PAUSE: Duration = Duration::from_millis(50);
/// A started program is not yet the process it becomes.
const START: Duration = Duration::from_secs(10);

/// Waits until `done` says so; the error names what was waited for and shows its log.
pub(crate) fn until(
    what: &str,
    limit: Duration,
    log: &Path,
    mut done: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !done()? {
        if Instant::now() > deadline {
            return Err(not_up(what, format!("did not come within {} s", limit.as_secs()), log));
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// Fails if the component, started at `begun`, has ended.
pub(crate) fn alive(
    machine: &Machine,
    component: &Component,
    begun: Instant,
    log: &Path,
) -> Result<()> {
    if begun.elapsed() < START || !machine.processes(component).is_empty() {
        return Ok(());
    }
    let what = format!("{} on {}", component.name, machine.name);
    Err(not_up(&what, "ended at its start".into(), log))
}

fn not_up(what: &str, why: String, log: &Path) -> LabError {
    LabError::NotUp { what: what.to_owned(), why, log: log.to_owned(), tail: tail(log) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_with_the_last_lines_of_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("etcd.log");
        std::fs::write(&log, "first\nno space left\n").unwrap();
        let error = until("etcd", Duration::ZERO, &log, || Ok(false)).unwrap_err().to_string();
        assert!(error.starts_with("etcd did not come within 0 s; the last lines of "));
        assert!(error.ends_with("etcd.log:\n  first\n  no space left"));
    }
}
