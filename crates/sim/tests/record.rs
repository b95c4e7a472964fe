//! A recorded run leads both ways, and a log of a stranger's making does no harm.

#![allow(clippy::unwrap_used, reason = "what fails here is the test")]

use proptest::prelude::*;
use shadow_protocol::spec::{ReplayMode, Strategy};
use shadow_sim::forecast::{Options, forecast, forecast_recorded};
use shadow_sim::record::{Cursor, Recording};

fn options() -> Options {
    Options {
        rate: 60,
        service_micros: 2_000,
        backlog: 20,
        publishers: 2,
        checkpoint_mb: 15,
        bandwidth: 100_000_000,
        strategy: Strategy::ShadowPod,
        replay_mode: Some(ReplayMode::Cutoff),
        remembers_queue: true,
        seed: 7,
        fault: Some("push-fails@transferring".parse().unwrap()),
    }
}

fn recorded() -> Recording {
    forecast_recorded(&options()).unwrap().1
}

#[test]
fn what_is_written_is_read_again_and_recording_changes_nothing() {
    let (seen, recording) = forecast_recorded(&options()).unwrap();
    assert_eq!(seen, forecast(&options()).unwrap());
    let text = recording.write().unwrap();
    assert_eq!(text.lines().count(), recording.events.len() + 1);
    assert_eq!(Recording::read(text.as_bytes()), Ok(recording));
}

#[test]
fn every_picture_on_the_way_there_is_met_again_on_the_way_back() {
    let recording = recorded();
    let mut cursor = Cursor::new(&recording);
    let mut pictures = vec![cursor.picture().clone()];
    while cursor.forward().is_some() {
        pictures.push(cursor.picture().clone());
    }
    assert_eq!(pictures.len(), recording.events.len() + 1);
    assert_eq!(cursor.picture()["migration"], "failed");
    while let Some(expected) = pictures.pop() {
        assert_eq!(cursor.picture(), &expected, "after {} events", cursor.happened());
        assert_eq!(cursor.back().is_some(), !pictures.is_empty());
    }
    assert!(cursor.picture().is_empty());
    cursor.go_to_time(recording.events[10].at);
    assert!(cursor.happened() >= 11);
    assert_eq!(cursor.picture(), &recording.picture(cursor.happened()));
}

#[test]
fn a_broken_log_is_told_with_its_line() {
    let text = recorded().write().unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let read = |lines: &[&str]| Recording::read(lines.join("\n").as_bytes()).unwrap_err();
    let mut missing = lines.clone();
    missing.remove(2);
    assert!(read(&missing).line > 2, "what follows a missing line contradicts it");
    let mut cut = lines.clone();
    cut[4] = &cut[4][..cut[4].len() / 2];
    assert_eq!(read(&cut).line, 5);
    assert_eq!(read(&lines[1..]).line, 1);
    let newer = lines[0].replace("\"shadowLog\":1", "\"shadowLog\":2");
    let error = read(&[&newer]);
    assert!(error.to_string().starts_with("line 1 of the log: the log has version 2"), "{error}");
    assert_eq!(Recording::read(b"").unwrap_err().line, 1);
    let twice =
        r#"{"at":1,"what":[],"changes":[{"name":"a","after":"1"},{"name":"a","after":"2"}]}"#;
    assert_eq!(read(&[lines[0], twice]).line, 2, "could not be taken back");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn garbage_is_an_error_with_a_line(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let error = Recording::read(&bytes).unwrap_err();
        prop_assert_eq!(error.line, 1);
    }

    /// A log with bytes overwritten is refused at a line of it, or leads both ways all the same.
    #[test]
    fn a_damaged_log_does_no_harm(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = recorded().write().unwrap().into_bytes();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.index(bytes.len()) + 1);
        let lines = bytes.split(|byte| *byte == b'\n').count();
        match Recording::read(&bytes) {
            Err(error) => prop_assert!((1..=lines).contains(&error.line), "{}", error),
            Ok(recording) => {
                let mut cursor = Cursor::at_end(&recording);
                cursor.go(0);
                prop_assert!(cursor.picture().is_empty());
            }
        }
    }
}
