//! Phase Pending: everything that can be refused is refused here, before anything is touched.
//!
//! The conditions are those of `docs/handoff.md`; each refusal says what to do instead.

use crate::broker::{Counts, Survey, Totals};
use crate::decide::Next;
use crate::effect::Effect;
use crate::freeze;
use crate::names::Names;
use crate::observation::{Claim, Node, Observation, Owner, Pod, Preflight};
use crate::phase::{AloneStep, CutStep, Failure, Hop, ParkStep, Phase, Plan};
use crate::spec::{IdentitySwap, ReplayMode, Settings, Spec, Strategy, Transfer};

mod alone;
mod broker;
mod names;
mod pin;
mod set;

pub use names::{Called, target_name, written_down};
pub use pin::{not_pinned, obstacle};

use alone::alone_allowed;
use broker::{
    bindings_allow, broker_allows, consumers_allow, heartbeat_allows, only_consumer, queue_allows,
    undisturbed,
};
use set::{hop, leaves};

const RETRY: u64 = 500;

/// Annotation by which a user says that the application of a pod remembers its queue.
pub const REMEMBERS: &str = "migration.ms2m.io/remembers-queue";

pub(crate) fn effects(spec: &Spec) -> Vec<Effect> {
    if spec.queue.is_some() { vec![Effect::Lock] } else { Vec::new() }
}

type Checked<T> = Result<T, Refusal>;

enum Refusal {
    /// Refused for good.
    No(Failure),
    /// Not known yet.
    Unknown(String),
}

fn no<T>(reason: &str, message: impl Into<String>) -> Checked<T> {
    Err(Refusal::No(Failure::new(reason, message)))
}

fn unknown<T>(waiting: impl Into<String>) -> Checked<T> {
    Err(Refusal::Unknown(waiting.into()))
}

pub(crate) fn step(spec: &Spec, settings: &Settings, seen: &Observation) -> Next {
    match plan(spec, settings, seen) {
        Ok(plan) => {
            let step = match plan.mode {
                ReplayMode::Park => CutStep::Park(ParkStep::Declare),
                ReplayMode::Cutoff | ReplayMode::Drain => CutStep::Install,
                ReplayMode::Alone => CutStep::Alone(AloneStep::Pull),
            };
            Next::go(Phase::Checkpointing { plan, step })
        }
        Err(Refusal::No(failure)) => Next::Fail(failure),
        Err(Refusal::Unknown(waiting)) => Next::Wait(RETRY, waiting),
    }
}

fn plan(spec: &Spec, settings: &Settings, seen: &Observation) -> Checked<Plan> {
    let Some(preflight) = &seen.preflight else { return unknown("the cluster to answer") };
    let (pod, container) = source(spec, seen)?;
    if spec.queue.is_none() {
        alone_allowed(spec, pod)?;
    }
    let plan = alone(spec, settings, pod, container, preflight)?;
    let plan = match &spec.queue {
        Some(queue) => with_queue(spec, settings, seen, queue, pod, plan)?,
        None => plan,
    };
    // The last to be known: whatever else is in the way is told at once.
    checks_passed(spec, &plan.target_node, preflight)?;
    Ok(plan)
}

/// The plan with what the broker says.
fn with_queue(
    spec: &Spec,
    settings: &Settings,
    seen: &Observation,
    queue: &str,
    pod: &Pod,
    plan: Plan,
) -> Checked<Plan> {
    let Some(preflight) = &seen.preflight else { return unknown("the cluster to answer") };
    if seen.acted.is_none() {
        return unknown("the lock on the queue");
    }
    let Some(survey) = &preflight.survey else { return unknown("the broker's survey") };
    broker_allows(survey)?;
    queue_allows(queue, survey)?;
    let Some(counts) = seen.broker.as_ref().and_then(|broker| broker.primary) else {
        return unknown("the broker's counters");
    };
    let consumer = consumers_allow(spec, queue, pod, survey, counts)?;
    heartbeat_allows(spec, consumer, preflight)?;
    let (mode, mode_reason) = mode(spec, settings, queue, pod, survey, counts)?;
    let hop = hop(spec, pod, mode)?;
    Ok(Plan {
        hop,
        names: Names::new(queue, &spec.uid),
        source_connection: consumer.connection.clone(),
        bindings: survey.bindings.clone(),
        before: survey.totals,
        consumers: counts.consumers,
        mode,
        mode_reason,
        ..plan
    })
}

/// The plan as far as the cluster goes: all of it, where there is no queue.
fn alone(
    spec: &Spec,
    settings: &Settings,
    pod: &Pod,
    container: String,
    preflight: &Preflight,
) -> Checked<Plan> {
    let repository = repository(spec, preflight)?;
    let target_node = target_node(spec, pod, preflight)?;
    let strategy = strategy(spec, settings, pod)?;
    let target_pod = match strategy {
        Strategy::ShadowPod => target_name(pod.called(&spec.source_pod)),
        Strategy::Sequential => spec.source_pod.clone(),
    };
    let replicas = leaves(spec, pod, strategy, preflight)?;
    copy_allowed(spec, strategy, preflight)?;
    survives_freeze(spec, pod, &container, preflight)?;
    if preflight.name_taken && strategy == Strategy::ShadowPod {
        return no(
            "NameTaken",
            format!(
                "the copy of source pod {} would be called {target_pod}, and another pod has that \
                 name; delete it if nobody needs it, then create the migration again",
                spec.source_pod
            ),
        );
    }
    let Some(status) = pod.statuses.get(&container) else {
        return no("ContainerNotRunning", format!("container {container} has no status yet"));
    };
    let pin = pin::pin(spec, pod, preflight)?;
    Ok(Plan {
        hop: Hop::Only,
        pin,
        replicas,
        names: Names::default(),
        source_pod: spec.source_pod.clone(),
        source_uid: pod.uid.clone(),
        source_container_id: status.id.clone(),
        source_connection: String::new(),
        remembers: pod.remembers,
        source_node: pod.node.clone().unwrap_or_default(),
        base_image: status.image.clone(),
        container,
        target_pod,
        target_node,
        owner: pod.owner.clone(),
        strategy,
        transfer: spec.transfer,
        repository,
        bindings: Vec::new(),
        before: Totals::default(),
        consumers: 0,
        mode: ReplayMode::Alone,
        mode_reason: "there is no messageQueueConfig".to_owned(),
        cutoff_ms: spec.cutoff_ms,
        wake_after_ms: settings.wake_ms + 2 * freeze::predicted_ms(preflight.memory_bytes),
    })
}

fn source<'a>(spec: &Spec, seen: &'a Observation) -> Checked<(&'a Pod, String)> {
    let name = &spec.source_pod;
    let Some(pod) = &seen.source else {
        return no(
            "SourceNotFound",
            format!("source pod {name} does not exist in this namespace; name one that does"),
        );
    };
    if pod.terminating {
        return no(
            "SourceNotRunning",
            format!("source pod {name} is being deleted; name the one that takes its place"),
        );
    }
    if !pod.running || pod.node.is_none() {
        return no(
            "SourceNotRunning",
            format!("source pod {name} is not running; wait until it is"),
        );
    }
    match &pod.owner {
        Owner::Bare | Owner::Deployment { .. } | Owner::StatefulSet(_) => {}
        Owner::Other { kind, name: owner } => {
            return no(
                "OwnerNotSupported",
                format!(
                    "source pod {name} belongs to {kind} {owner}, which would not accept the \
                         moved pod; bare pods and pods of Deployments and StatefulSets can be \
                         moved"
                ),
            );
        }
    }
    let container = match &spec.container {
        Some(container) if pod.containers.contains(container) => container.clone(),
        Some(container) => {
            return no(
                "ContainerNotFound",
                format!(
                    "source pod {name} has no container {container}; it has {}",
                    pod.containers.join(", ")
                ),
            );
        }
        None => pod.containers.first().cloned().unwrap_or_default(),
    };
    if !pod.statuses.get(&container).is_some_and(|status| status.running) {
        return no(
            "ContainerNotRunning",
            format!(
                "container {container} of source pod {name} is not running; wait until it is, or \
                 name another in containerName"
            ),
        );
    }
    if let Some(problem) = pod.problems.first() {
        return no("PodNotMovable", format!("source pod {name} can't be checkpointed: {problem}"));
    }
    Ok((pod, container))
}

/// As asked for, or by the owner: the names of a StatefulSet's pods are unique.
fn strategy(spec: &Spec, settings: &Settings, pod: &Pod) -> Checked<Strategy> {
    let name = &spec.source_pod;
    match (&pod.owner, spec.strategy) {
        (Owner::StatefulSet(set), None | Some(Strategy::Sequential)) if !settings.admission => no(
            "NotSupported",
            format!(
                "source pod {name} belongs to StatefulSet {set}, which would replace it with a fresh \
                 pod; to keep its name for the copy needs Kubernetes 1.30 or later, whose API \
                 server serves ValidatingAdmissionPolicies"
            ),
        ),
        (Owner::StatefulSet(_), None | Some(Strategy::Sequential)) => Ok(Strategy::Sequential),
        (Owner::StatefulSet(set), Some(Strategy::ShadowPod))
            if spec.identity_swap != IdentitySwap::None && !settings.admission =>
        {
            no(
                "NotSupported",
                format!(
                    "identitySwapMode for source pod {name} of StatefulSet {set} needs Kubernetes \
                     1.30 or later, whose API server serves ValidatingAdmissionPolicies"
                ),
            )
        }
        (_, Some(Strategy::Sequential)) => no(
            "NotSupported",
            format!(
                "strategy Sequential is for pods of StatefulSets, which pod {name} is not; use \
                 ShadowPod"
            ),
        ),
        (_, None | Some(Strategy::ShadowPod)) => Ok(Strategy::ShadowPod),
    }
}

/// Both copies run at once in strategy ShadowPod, and need their volumes at once.
fn copy_allowed(spec: &Spec, strategy: Strategy, preflight: &Preflight) -> Checked<()> {
    let name = &spec.source_pod;
    let Some(claims) = &preflight.claims else {
        return unknown(format!("the volume claims of pod {name}"));
    };
    let alone = claims.iter().find(|claim| !claim.shared);
    if let Some(Claim { name: claim, .. }) = alone.filter(|_| strategy == Strategy::ShadowPod) {
        return no(
            "VolumeNotShared",
            format!(
                "volume claim {claim} of source pod {name} can be used on one node at a time, and \
                 strategy ShadowPod runs the pod on two; use strategy Sequential for a StatefulSet's \
                 pod, or a claim that is ReadWriteMany"
            ),
        );
    }
    match &preflight.copy {
        Some(Ok(())) => Ok(()),
        Some(Err(why)) => no(
            "CopyRefused",
            format!(
                "a copy of source pod {name} could not be created: {why}; see to that, then create \
                 the migration again"
            ),
        ),
        None => unknown(format!("the API server to try out a copy of pod {name}")),
    }
}

/// A process that stands still for its checkpoint answers no probe.
fn survives_freeze(spec: &Spec, pod: &Pod, container: &str, preflight: &Preflight) -> Checked<()> {
    let freeze = freeze::predicted_ms(preflight.memory_bytes);
    let Some(probe) = pod.liveness.filter(|probe| !probe.outlasts(freeze)) else { return Ok(()) };
    let known = preflight.memory_bytes.map(|bytes| format!(" with its {} MB", bytes / 1_000_000));
    no(
        "LivenessTooStrict",
        format!(
            "the liveness probe of container {container} of source pod {} (every {} s, {} s for an \
             answer, {} failures) would end it while its checkpoint is taken, which{} stops it for \
             about {} ms; raise its failureThreshold or timeoutSeconds",
            spec.source_pod,
            probe.period_ms / 1_000,
            probe.timeout_ms / 1_000,
            probe.failures,
            known.unwrap_or_default(),
            freeze
        ),
    )
}

fn repository(spec: &Spec, preflight: &Preflight) -> Checked<String> {
    if spec.transfer == Transfer::Direct {
        return Ok(String::new());
    }
    let Some(repository) = spec.repository.clone().filter(|r| !r.is_empty()) else {
        return no(
            "RepositoryMissing",
            "transferMode Registry needs checkpointImageRepository, as registry.example/checkpoints; \
             transferMode Direct needs none",
        );
    };
    match &preflight.registry {
        Some(Ok(())) => Ok(repository),
        Some(Err(why)) => no(
            "RegistryUnreachable",
            format!("the registry of checkpointImageRepository {repository} can't be used: {why}"),
        ),
        None => unknown(format!("the registry of {repository} to answer")),
    }
}

/// What only the nodes themselves know.
fn checks_passed(spec: &Spec, target: &str, preflight: &Preflight) -> Checked<()> {
    let name = &spec.source_pod;
    match &preflight.checks {
        Some(Ok(())) => Ok(()),
        Some(Err(why)) => no(
            "PreflightFailed",
            format!("source pod {name} can't be moved to node {target}: {why}"),
        ),
        None => unknown(format!("pod {name}'s node and node {target} to be looked at")),
    }
}

/// Whether `node` takes the pod that is on node `source`, were there room.
pub fn fits(node: &Node, source: &str) -> bool {
    node.schedulable && node.ready && node.problems.is_empty() && node.name != source
}

/// The node that is named or, if none is, the first that takes the pod.
pub fn target<'a>(spec: &Spec, source: &str, nodes: &'a [Node]) -> Option<&'a Node> {
    match &spec.target_node {
        Some(wanted) => nodes.iter().find(|node| node.name == *wanted),
        None => nodes.iter().find(|node| fits(node, source) && !node.full),
    }
}

fn target_node(spec: &Spec, pod: &Pod, preflight: &Preflight) -> Checked<String> {
    let source = pod.node.as_deref().unwrap_or_default();
    let found = target(spec, source, &preflight.nodes);
    let Some(wanted) = &spec.target_node else {
        return match found {
            Some(node) => Ok(node.name.clone()),
            None if preflight.nodes.iter().any(|node| fits(node, source)) => {
                unknown("room on a node that takes the pod")
            }
            None => no(
                "NoTargetNode",
                format!("no node but {source} is ready and takes the pod; name one to see why"),
            ),
        };
    };
    if wanted == source {
        return no(
            "TargetIsSource",
            format!("target node {wanted} is the node the source pod runs on; name another"),
        );
    }
    let Some(node) = found else {
        return no(
            "TargetNodeNotFound",
            format!(
                "target node {wanted} does not exist; the nodes are {}",
                names(&preflight.nodes)
            ),
        );
    };
    if !node.schedulable {
        return no(
            "TargetNodeUnschedulable",
            format!("target node {wanted} takes no new pods; uncordon it or name another"),
        );
    }
    if !node.ready {
        return no(
            "TargetNodeNotReady",
            format!("target node {wanted} is not Ready; wait until it is, or name another"),
        );
    }
    if let Some(problem) = node.problems.first() {
        return no("TargetNodeRefuses", format!("{problem}; name another node"));
    }
    Ok(wanted.clone())
}

fn names(nodes: &[Node]) -> String {
    let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
    names.join(", ")
}

/// How messages are handed over, and why so.
fn mode(
    spec: &Spec,
    settings: &Settings,
    queue: &str,
    pod: &Pod,
    survey: &Survey,
    counts: Counts,
) -> Checked<(ReplayMode, String)> {
    undisturbed(spec, queue, survey)?;
    let replay = only_consumer(spec, queue, counts).and_then(|()| bindings_allow(queue, survey));
    match spec.replay_mode {
        Some(ReplayMode::Park) if pod.remembers => Ok((ReplayMode::Park, "asked for".to_owned())),
        Some(ReplayMode::Park) => no(
            "ParkNotPossible",
            format!(
                "replayMode Park needs an application that, when it has lost its connection, \
                 returns to the queue it was told to consume; if pod {} does, annotate it with \
                 {REMEMBERS}: \"true\", else use replayMode Cutoff or Drain",
                spec.source_pod
            ),
        ),
        Some(asked) => replay.map(|()| (asked, "asked for".to_owned())).map_err(park_instead),
        None => match replay {
            Err(Refusal::No(why)) if pod.remembers => {
                Ok((ReplayMode::Park, format!("Replay is not possible: {}", why.message)))
            }
            Err(refusal) => Err(park_instead(refusal)),
            // To stand still twice would be worse.
            Ok(()) if pod.remembers && spec.identity_swap == IdentitySwap::None => {
                Ok(by_backlog(settings, survey, counts))
            }
            Ok(()) => Ok((ReplayMode::Cutoff, "Replay needs no pause".to_owned())),
        },
    }
}

/// What to do where a feed can't be diverted.
fn park_instead(refusal: Refusal) -> Refusal {
    let Refusal::No(Failure { reason, message }) = refusal else { return refusal };
    let instead =
        "use replayMode Park, if the application returns to the queue it was told to consume";
    Refusal::No(Failure::new(&reason, format!("{message}; {instead}")))
}

/// Both copies would work off a deep backlog for longer than it takes to move without it.
fn by_backlog(settings: &Settings, survey: &Survey, counts: Counts) -> (ReplayMode, String) {
    let ready = counts.ready;
    let Some(rate) = survey.service_rate.filter(|rate| *rate > 0) else {
        return (ReplayMode::Cutoff, "the rate of the application is not known".to_owned());
    };
    let takes = ready.saturating_mul(1_000) / rate;
    let seconds = takes / 1_000;
    if takes > settings.park_pause_ms {
        let why = format!("the {ready} messages that wait take {seconds} s to work off");
        return (ReplayMode::Park, why);
    }
    (ReplayMode::Cutoff, format!("the {ready} messages that wait take only {seconds} s"))
}
