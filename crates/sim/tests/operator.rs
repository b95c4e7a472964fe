//! The operator's own loop on the in-memory cluster: from a `StatefulMigration` to its end.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "what fails here is the test"
)]

mod support;

use std::time::Duration;

use serde_json::Value;
use shadow_operator::clock;
use shadow_sim::kube::{Call, Failure, Fate, Kube, Refusal, Verb};
use support::{START, World, operator, shop, simulate, until, wish};

fn phase(kube: &Kube) -> String {
    let object = kube.get("statefulmigrations", "shop", "move");
    let phase = object.as_deref().and_then(|object| object["status"]["phase"].as_str());
    phase.unwrap_or_default().to_owned()
}

async fn end(kube: &Kube) -> String {
    until(kube, || Some(phase(kube)).filter(|phase| phase == "Completed" || phase == "Failed"))
        .await
}

/// How a run ended: everything in the cluster and at the broker, and how long it took.
#[derive(PartialEq, Debug)]
struct Outcome {
    phase: String,
    objects: Vec<Value>,
    broker: String,
    millis: u64,
    requests: u64,
}

fn run(prepare: impl FnOnce(&Kube, &str)) -> Outcome {
    simulate(|kube: Kube, world: World| async move {
        let source = shop(&kube, &world).await;
        prepare(&kube, &source);
        let operator = operator(&kube, &world, "operator");
        kube.create(wish(&source)).unwrap();
        let phase = end(&kube).await;
        // The cluster comes to rest.
        tokio::time::sleep(Duration::from_mins(1)).await;
        operator.abort();
        let millis = clock::now().since(START);
        let objects = everything(&kube);
        Outcome { phase, objects, broker: world.left(), millis, requests: kube.requests() }
    })
}

fn everything(kube: &Kube) -> Vec<Value> {
    let kinds = ["pods", "jobs", "replicasets", "statefulmigrations"];
    let objects = kinds.into_iter().flat_map(|plural| kube.all(plural));
    objects.map(|object| Value::clone(&object)).collect()
}

fn pods(outcome: &Outcome) -> Vec<(&str, &str)> {
    let pods = outcome.objects.iter().filter(|object| object["kind"] == "Pod");
    pods.map(|pod| {
        let node = pod["spec"]["nodeName"].as_str().unwrap();
        (pod["metadata"]["name"].as_str().unwrap(), node)
    })
    .collect()
}

/// The moved pod is the only one, the ReplicaSet's, and nothing else is left.
fn assert_moved(outcome: &Outcome) {
    let status = &outcome.objects.last().unwrap()["status"];
    assert_eq!(outcome.phase, "Completed", "{status:#}");
    let [(name, node)] = pods(outcome)[..] else { panic!("{:?}", pods(outcome)) };
    assert!(name.ends_with("-shadow"), "{name} is not the moved pod");
    assert_eq!(node, "worker-2");
    let pod = &outcome.objects[0];
    assert_eq!(pod["metadata"]["ownerReferences"][0]["name"], "app-5d8f");
    assert!(shadow_sim::kube::condition(pod, "Ready"), "{:#}", pod["status"]);
    assert!(outcome.objects.iter().all(|object| object["kind"] != "Job"), "a Job is left");
    assert!(outcome.broker.starts_with(r#"["app.events"] "#), "{}", outcome.broker);
}

/// Moved, or everything as before.
fn assert_whole(outcome: &Outcome) {
    if outcome.phase == "Completed" {
        return assert_moved(outcome);
    }
    let [(name, node)] = pods(outcome)[..] else { panic!("{:?}", pods(outcome)) };
    assert!(!name.ends_with("-shadow"), "{name} is not the source");
    assert_eq!(node, "worker-1");
    assert!(outcome.objects.iter().all(|object| object["kind"] != "Job"), "a Job is left");
    assert!(outcome.broker.starts_with(r#"["app.events"] "#), "{}", outcome.broker);
}

#[test]
fn the_operators_own_loop_moves_a_pod_of_a_deployment() {
    let outcome = run(|_, _| {});
    assert_moved(&outcome);
}

#[test]
fn two_runs_are_the_same_run() {
    // Failed lists and watches are tried again after a pause with jitter.
    let flaky = |kube: &Kube, _: &str| {
        kube.set_faults(Box::new(|call: &Call| match call.nth % 3 {
            // A checkpoint that fails is not tried again.
            _ if call.verb == Verb::Checkpoint => Fate::Pass,
            0 => Fate::Refuse(Failure::Answer(Refusal::internal("starting up"))),
            1 => Fate::Late(Duration::from_millis(7)),
            _ => Fate::Pass,
        }));
    };
    let first = run(flaky);
    assert_moved(&first);
    assert_eq!(first, run(flaky));
}

#[test]
fn lost_answers_and_refusals_change_nothing_in_the_end() {
    for verb in [Verb::Create, Verb::Replace, Verb::Patch, Verb::Delete, Verb::Get] {
        let faults = [
            Fate::Twice,
            Fate::Lose(Failure::Reset),
            Fate::Lose(Failure::Answer(Refusal::timeout())),
            Fate::Refuse(Failure::Answer(Refusal::busy())),
            Fate::Refuse(Failure::Answer(Refusal::internal("etcdserver: leader changed"))),
        ];
        for fault in faults {
            let what = format!("{verb:?} {fault:?}");
            let outcome = run(|kube, _| {
                kube.set_faults(Box::new(move |call: &Call| {
                    if call.verb == verb && call.nth.is_multiple_of(2) {
                        fault.clone()
                    } else {
                        Fate::Pass
                    }
                }));
            });
            println!("{what}: {} ms", outcome.millis);
            assert_moved(&outcome);
        }
    }
}

#[test]
fn a_watch_that_must_begin_anew_loses_nothing() {
    let outcome = simulate(|kube, world| async move {
        let source = shop(&kube, &world).await;
        let _operator = operator(&kube, &world, "operator");
        kube.create(wish(&source)).unwrap();
        for wanted in ["Checkpointing", "Transferring", "Restoring"] {
            until(&kube, || (phase(&kube) == wanted).then_some(())).await;
            kube.cut_watches(None);
            kube.forget_history();
        }
        end(&kube).await
    });
    assert_eq!(outcome, "Completed");
}

#[test]
fn an_operator_that_dies_in_any_phase_is_followed_by_another() {
    for wanted in
        ["Pending", "Checkpointing", "Transferring", "Restoring", "Replaying", "Finalizing"]
    {
        let outcome = simulate(|kube, world| async move {
            let source = shop(&kube, &world).await;
            let first = operator(&kube, &world, "first");
            kube.create(wish(&source)).unwrap();
            until(&kube, || (phase(&kube) == wanted).then_some(())).await;
            first.abort();
            let _second = operator(&kube, &world, "second");
            end(&kube).await
        });
        assert_eq!(outcome, "Completed", "the first died in {wanted}");
    }
}

#[test]
fn a_source_that_crashes_while_it_is_moved_is_made_good() {
    let (outcome, pods) = simulate(|kube, world| async move {
        let source = shop(&kube, &world).await;
        let _operator = operator(&kube, &world, "operator");
        kube.create(wish(&source)).unwrap();
        until(&kube, || (phase(&kube) == "Checkpointing").then_some(())).await;
        kube.crash("shop", &source, "app", 1);
        let phase = end(&kube).await;
        tokio::time::sleep(Duration::from_mins(1)).await;
        (phase, kube.all("pods").len())
    });
    assert_eq!((outcome.as_str(), pods), ("Failed", 1));
}

/// The operator dies at its `nth` request, which reaches the server or not.
fn killed_at(nth: u64, reaches: bool) -> Option<Outcome> {
    let never = Failure::Silence(Duration::from_hours(1));
    let (kill, mut killed) = tokio::sync::mpsc::unbounded_channel();
    simulate(|kube, world| async move {
        let source = shop(&kube, &world).await;
        let mut count = 0;
        kube.set_faults(Box::new(move |call: &Call| {
            if call.client != "first" || call.verb == Verb::Watch {
                return Fate::Pass;
            }
            count += 1;
            if count <= nth {
                return Fate::Pass;
            }
            let _ = kill.send(());
            if reaches { Fate::Lose(never.clone()) } else { Fate::Refuse(never.clone()) }
        }));
        let first = operator(&kube, &world, "first");
        kube.create(wish(&source)).unwrap();
        tokio::select! {
            biased;
            _ = killed.recv() => {}
            _ = end(&kube) => return None,
        }
        first.abort();
        let _second = operator(&kube, &world, "second");
        let phase = end(&kube).await;
        tokio::time::sleep(Duration::from_mins(1)).await;
        Some(Outcome {
            phase,
            objects: everything(&kube),
            broker: world.left(),
            millis: clock::now().since(START),
            requests: kube.requests(),
        })
    })
}

#[test]
fn an_operator_that_dies_at_any_request_is_followed_by_another() {
    let begun = std::time::Instant::now();
    let (mut runs, mut moved) = (0, 0);
    for reaches in [false, true] {
        for nth in 0.. {
            let Some(outcome) = killed_at(nth, reaches) else { break };
            println!("dies at request {nth}, which reaches the server: {reaches}");
            assert_whole(&outcome);
            moved += u32::from(outcome.phase == "Completed");
            runs += 1;
        }
    }
    println!("{runs} runs in {:?}, {moved} moved", begun.elapsed());
    assert!(runs > 60, "{runs} runs");
    // Only who dies while the target is created leaves his successor in doubt.
    assert!(runs - moved <= 4, "{moved} of {runs} moved");
}

/// As over a quota: nothing has been created.
#[test]
fn a_create_that_ends_in_a_conflict_of_another_kind_is_tried_again() {
    let outcome = run(|kube, _| {
        kube.set_faults(Box::new(|call: &Call| {
            let ours = call.verb == Verb::Create && call.plural != "events";
            if ours && call.nth == 0 {
                Fate::Refuse(Failure::Answer(Refusal::conflict("resourcequotas: modified")))
            } else {
                Fate::Pass
            }
        }));
    });
    assert_moved(&outcome);
}
