//! Everything that is refused before anything is touched, and the sentence with which.
//!
//! `INSTA_UPDATE=always cargo test -p shadow-protocol refused` writes the sentences anew.

use std::fmt::Write as _;

use super::*;
use crate::freeze::Liveness;
use crate::observation::{Claim, PodsOfSet};
use crate::pending::REMEMBERS;

type Spoil = fn(&mut Spec, &mut Observation);

const ASKED: [(&str, Spoil); 9] = [
    ("Sequential for a bare pod", |s, _| s.strategy = Some(Strategy::Sequential)),
    ("no checkpointImageRepository", |s, _| s.repository = None),
    ("Park for a pod that does not remember", |s, _| s.replay_mode = Some(ReplayMode::Park)),
    ("a swap for a bare pod", |s, _| s.identity_swap = IdentitySwap::Cutoff),
    ("a target node that does not exist", |s, _| s.target_node = Some("worker-9".into())),
    ("the source's own node", |s, _| s.target_node = Some("worker-1".into())),
    ("a container that does not exist", |s, _| s.container = Some("nope".into())),
    ("a registry that does not answer", |_, o| {
        checks(o).registry = Some(Err("connection refused".into()));
    }),
    ("an exchange that does not feed the queue", |_, o| found(o).bindings.clear()),
];

const PODS: [(&str, Spoil); 19] = [
    ("no such pod", |_, o| o.source = None),
    ("a pod that is being deleted", |_, o| source(o).terminating = true),
    ("a pod that does not run", |_, o| source(o).running = false),
    ("a container that does not run", |_, o| {
        let container = source(o).statuses.get_mut("app").expect("a container");
        container.running = false;
    }),
    ("a pod that CRIU can't dump", |_, o| source(o).problems = vec!["it has a tty".into()]),
    ("a DaemonSet's pod", |_, o| {
        source(o).owner = Owner::Other { kind: "DaemonSet".into(), name: "log".into() };
    }),
    ("a StatefulSet's pod, before Kubernetes 1.30", |_, o| of_set(o)),
    ("its swap, before Kubernetes 1.30", |s, o| {
        of_set(o);
        (s.strategy, s.identity_swap) = (Some(Strategy::ShadowPod), IdentitySwap::ExchangeFence);
    }),
    ("ShadowPod for a middle pod of a StatefulSet", |s, o| {
        of_set(o);
        (s.source_pod, s.strategy) = ("app-1".into(), Some(Strategy::ShadowPod));
    }),
    ("ShadowPod where its claims would go", |s, o| {
        of_set(o);
        checks(o).set = Some(PodsOfSet { first: 0, replicas: 3, deletes_claims: true });
        (s.source_pod, s.strategy) = ("app-2".into(), Some(Strategy::ShadowPod));
    }),
    ("a volume for one node at a time", |_, o| {
        let claim = Claim { name: "data".into(), shared: false };
        checks(o).claims = Some(vec![claim]);
    }),
    ("a copy that the API server does not take", |_, o| {
        let why = "pods \"consumer-0-shadow\" is forbidden: exceeded quota: small";
        checks(o).copy = Some(Err(why.into()));
    }),
    ("a node that can't restore", |_, o| {
        let why = "check criu of node worker-2: there is no CRIU; install it";
        checks(o).checks = Some(Err(why.into()));
    }),
    ("a liveness probe that a checkpoint would fail", |_, o| {
        checks(o).memory_bytes = Some(2_000_000_000);
        let probe = Liveness { period_ms: 5_000, timeout_ms: 1_000, failures: 2 };
        source(o).liveness = Some(probe);
    }),
    ("a name that is taken", |_, o| checks(o).name_taken = true),
    ("a target node that is cordoned", |_, o| checks(o).nodes[1].schedulable = false),
    ("a target node that is not Ready", |_, o| checks(o).nodes[1].ready = false),
    ("a target node with a taint", |_, o| {
        checks(o).nodes[1].problems = vec!["node worker-2 has the taint a:NoSchedule".into()];
    }),
    ("no node but its own", |s, o| {
        s.target_node = None;
        checks(o).nodes.truncate(1);
    }),
];

const ALONE: [(&str, Spoil); 6] = [
    ("a bare pod without a queue", |s, _| s.queue = None),
    ("Sequential for a bare pod without a queue", |s, _| {
        (s.queue, s.strategy) = (None, Some(Strategy::Sequential));
    }),
    ("a Deployment's pod without a queue", |s, o| {
        s.queue = None;
        let (replica_set, deployment) = ("app-5d8f".into(), "app".into());
        source(o).owner = Owner::Deployment { replica_set, deployment };
    }),
    ("ShadowPod without a queue", |s, o| {
        of_set(o);
        (s.queue, s.strategy) = (None, Some(Strategy::ShadowPod));
    }),
    ("a swap without a queue", |s, o| {
        of_set(o);
        (s.queue, s.strategy) = (None, Some(Strategy::ShadowPod));
        s.identity_swap = IdentitySwap::ExchangeFence;
    }),
    ("a replayMode without a queue", |s, o| {
        of_set(o);
        (s.queue, s.replay_mode) = (None, Some(ReplayMode::Drain));
    }),
];

const BROKERS: [(&str, Spoil); 13] = [
    ("RabbitMQ 3", |_, o| found(o).version = "3.13.7".into()),
    ("a broker without statistics", |_, o| found(o).statistics_disabled = true),
    ("a broker with an alarm", |_, o| found(o).alarms = vec!["memory on node rabbit@a".into()]),
    ("publishers in transactions", |_, o| {
        found(o).transactions = vec!["channel 10.0.1.7:4711 (1)".into()];
    }),
    ("no such queue", |_, o| found(o).queue = None),
    ("an exclusive queue", |_, o| queue(o).exclusive = true),
    ("an auto-delete queue", |_, o| queue(o).auto_delete = true),
    ("a transient queue", |_, o| queue(o).durable = false),
    ("a stream", |_, o| queue(o).kind = QueueType::Other("stream".into())),
    ("a queue whose messages expire", |_, o| {
        queue(o).policy.insert("message-ttl".into(), 1_000.into());
    }),
    ("a single active consumer", |_, o| {
        queue(o).arguments.insert("x-single-active-consumer".into(), true.into());
    }),
    ("a queue fed by the default exchange alone", |s, o| {
        s.exchange.clear();
        found(o).bindings.clear();
    }),
    ("a consistent-hash exchange", |_, o| {
        let kind = "x-consistent-hash".to_owned();
        found(o).exchanges = BTreeMap::from([("app.fanout".to_owned(), Exchange { kind })]);
    }),
];

const CONSUMERS: [(&str, Spoil); 9] = [
    ("what another migration left", |_, o| {
        found(o).bindings.push(Binding::plain("ms2m.other.both"));
    }),
    ("no consumer", |_, o| consumers(o, 0)),
    ("two consumers", |_, o| second(o, "10.0.3.3")),
    ("a pod that consumes twice", |_, o| second(o, "10.0.1.5")),
    ("a consumer without acknowledgements", |_, o| found(o).consumers[0].ack_required = false),
    ("an exclusive consumer", |_, o| found(o).consumers[0].exclusive = true),
    ("somebody else's consumer", |_, o| found(o).consumers[0].peer = "10.0.9.9".into()),
    ("a heartbeat shorter than the checkpoint", |_, o| {
        checks(o).memory_bytes = Some(1_000_000_000);
        found(o).consumers[0].heartbeat_s = Some(5);
    }),
    ("an application that takes no orders", |_, o| found(o).control_queue = false),
];

const KEEPING_NAMES: [(&str, Spoil); 1] = [("a swap in mode Park", |s, o| {
    of_set(o);
    source(o).remembers = true;
    (s.strategy, s.identity_swap) = (Some(Strategy::ShadowPod), IdentitySwap::Cutoff);
    s.replay_mode = Some(ReplayMode::Park);
})];

fn of_set(seen: &mut Observation) {
    source(seen).owner = Owner::StatefulSet("app".into());
    checks(seen).set = Some(PodsOfSet { first: 0, replicas: 3, deletes_claims: false });
}

fn queue(seen: &mut Observation) -> &mut Queue {
    found(seen).queue.as_mut().expect("a queue")
}

fn consumers(seen: &mut Observation, consumers: u32) {
    seen.broker.as_mut().expect("a broker").primary = Some(Counts { ready: 0, consumers });
}

fn second(seen: &mut Observation, peer: &str) {
    consumers(seen, 2);
    let consumer = Consumer { peer: peer.into(), ..found(seen).consumers[0].clone() };
    found(seen).consumers.push(consumer);
}

/// The sentence with which a spoiled migration is refused, nothing touched.
fn refusal(name: &str, spoil: Spoil, settings: &Settings) -> String {
    let (mut spec, mut seen) = (spec(), preflight());
    spoil(&mut spec, &mut seen);
    let decision = decide(&spec, settings, &State::new(Time(0)), &seen, Time(1));
    let Phase::Failed { failure, rolled_back: false } = decision.state.phase else {
        panic!("{name} is not refused: {:?}", decision.state.phase)
    };
    assert!(decision.effects.iter().all(|effect| *effect == Effect::CloseBroker), "{name}");
    format!("{name}\n    {}: {}\n", failure.reason, failure.message)
}

#[test]
fn what_can_not_work_is_refused_before_anything_is_touched() {
    let mut said = String::new();
    for (name, spoil) in [&ASKED[..], &PODS, &ALONE, &BROKERS, &CONSUMERS].concat() {
        let _ = writeln!(said, "{}", refusal(name, spoil, &Settings::default()).trim_end());
    }
    let admission = Settings { admission: true, ..Settings::default() };
    for (name, spoil) in KEEPING_NAMES {
        let _ = writeln!(said, "{}", refusal(name, spoil, &admission).trim_end());
    }
    insta::assert_snapshot!(said);
    // Who wants Park is told how.
    assert!(said.contains(REMEMBERS));
}
