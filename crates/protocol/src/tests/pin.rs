//! The Deployment of the pod is pinned to the target node, unless that would restart anybody.

use super::*;
use crate::observation::Trouble;
use crate::phase::{Commit, Cuts, Failure, Image, Incarnation, Pin, Reached, Taken};

const FREE: Rollout = Rollout { replicas: 1, paused: false, complete: true };

fn deployed(rollout: Rollout) -> Observation {
    let mut seen = preflight();
    seen.source.as_mut().expect("a source").owner =
        Owner::Deployment { replica_set: "app-5d8f".into(), deployment: "app".into() };
    checks(&mut seen).rollout = Some(rollout);
    seen
}

fn decided(pin: Option<bool>, seen: &Observation) -> Phase {
    let spec = Spec { pin, ..spec() };
    decide(&spec, &Settings::default(), &State::new(Time(0)), seen, Time(0)).state.phase
}

fn planned(pin: Option<bool>, seen: &Observation) -> Pin {
    decided(pin, seen).plan().expect("it goes").pin.clone()
}

#[test]
fn the_only_pod_of_a_deployment_is_pinned_unless_the_user_says_no() {
    assert_eq!(planned(None, &deployed(FREE)), Pin::Yes);
    assert_eq!(planned(Some(true), &deployed(FREE)), Pin::Yes);
    assert_eq!(planned(Some(false), &deployed(FREE)), Pin::No);
    assert_eq!(planned(None, &preflight()), Pin::No, "a bare pod has no template");
}

#[test]
fn where_somebody_would_be_restarted_it_is_skipped_and_the_pod_moves() {
    for (rollout, word) in [
        (Rollout { replicas: 3, ..FREE }, "3 replicas"),
        (Rollout { paused: true, ..FREE }, "paused"),
        (Rollout { complete: false, ..FREE }, "rollout"),
    ] {
        for pin in [None, Some(true)] {
            let Pin::Skipped { why, asked } = planned(pin, &deployed(rollout)) else {
                panic!("{rollout:?} is pinned")
            };
            assert!(why.contains(word) && why.contains("Deployment app"), "{why}");
            assert_eq!(asked, pin.is_some(), "who has asked for it is warned");
        }
    }
    let Pin::Skipped { why, asked } = planned(Some(true), &preflight()) else {
        panic!("a bare pod is pinned")
    };
    assert!(asked && why.contains("consumer-0"), "{why}");
}

#[test]
fn nothing_is_decided_before_the_deployment_is_read() {
    let mut seen = deployed(FREE);
    checks(&mut seen).rollout = None;
    assert_eq!(decided(None, &seen), Phase::Pending);
    assert_eq!(planned(Some(false), &seen), Pin::No, "unless it does not matter");
}

fn plan() -> Plan {
    decided(None, &deployed(FREE)).plan().expect("it goes").clone()
}

/// In the step that pins, in the third second.
fn pinning(seen: &Observation) -> Phase {
    let phase = Phase::Finalizing {
        plan: plan(),
        taken: Taken {
            cuts: Some(Cuts { a: Time(0), b: Time(0), armed: None }),
            whole_until: None,
            archive: Archive { path: "/a.tar".into(), millis: 1 },
            pause_ms: 1,
        },
        image: Image { reference: "r@sha256:1".into(), bytes: 1 },
        target: Incarnation { uid: "target".into(), container_id: "c2".into(), feed_per_second: 0 },
        step: SwitchStep::Replace(None),
    };
    let state = State::new(Time(0)).go(phase, Time(0));
    decide(&spec(), &Settings::default(), &state, seen, Time(3_000)).state.phase
}

fn seen(pinned: bool) -> Observation {
    let ours = Pod { ours: true, ..pod("target", "worker-2", "c2") };
    Observation { target: Some(ours), pinned, ..preflight() }
}

#[test]
fn once_the_new_replica_set_is_there_the_target_stays() {
    let refused = |pinned| {
        let (reason, message) = ("ApiRefused".into(), "forbidden".into());
        let trouble = Some(Trouble { reason, message, permanent: true });
        pinning(&Observation { trouble, ..seen(pinned) })
    };
    assert!(matches!(refused(false), Phase::Unwinding { .. }));
    // The source may be deleted at any time.
    assert!(matches!(refused(true), Phase::Finalizing { .. }));
}

#[test]
fn a_target_that_dies_is_undone_as_long_as_the_source_stays() {
    let mut dead = seen(true);
    dead.target.as_mut().expect("a target").ended = true;
    assert!(matches!(pinning(&dead), Phase::Unwinding { .. }));
    dead.source.as_mut().expect("a source").terminating = true;
    assert!(matches!(pinning(&dead), Phase::Finalizing { .. }));
}

#[test]
fn the_template_is_given_back_before_the_target_goes() {
    let undo = |during| {
        let failure = Failure::new("Aborted", "");
        let phase = Phase::Unwinding {
            plan: plan(),
            failure,
            during,
            reached: Reached::CutB,
            alone: false,
            step: Undo::Target,
        };
        crate::decide::effects(&spec(), &phase)
    };
    let back = undo(PhaseName::Finalizing);
    let at = |effect: &Effect| back.iter().position(|it| it == effect);
    assert!(at(&Effect::Unpin) < at(&Effect::DeleteTarget) && at(&Effect::Unpin).is_some());
    assert!(!undo(PhaseName::Replaying).contains(&Effect::Unpin), "nothing has been changed yet");
}

#[test]
fn after_the_commit_the_source_is_deleted_once_nobody_replaces_it() {
    let commit = Some(Commit::inherited(Time(0)));
    let effects = crate::switch::effects(&plan(), SwitchStep::Replace(commit));
    assert_eq!(effects, [Effect::Pin, Effect::DeleteSource]);
    let effects = crate::switch::effects(&plan(), SwitchStep::Replace(None));
    assert_eq!(effects, [Effect::Pin], "its owner deletes it");
}
