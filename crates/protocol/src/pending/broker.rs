//! What the broker, the queue, its feed and its consumer must be like.

use super::{Checked, no, unknown};
use crate::broker::{Binding, Consumer, Counts, Queue, QueueType, Survey};
use crate::freeze;
use crate::names::control_queue;
use crate::observation::{Pod, Preflight};
use crate::spec::Spec;

/// Queue arguments and policy keys under which a message can vanish or move while it waits.
const PERISHABLE: [&str; 8] = [
    "message-ttl",
    "expires",
    "max-length",
    "max-length-bytes",
    "dead-letter-exchange",
    "delivery-limit",
    "max-age",
    "overflow",
];

pub(super) fn broker_allows(survey: &Survey) -> Checked<()> {
    let major: u32 =
        survey.version.split('.').next().and_then(|part| part.parse().ok()).unwrap_or(0);
    if major < 4 {
        return no(
            "BrokerTooOld",
            format!(
                "RabbitMQ {} lacks the consumer hand-over of quorum queues; 4.0 or later is \
                     needed",
                survey.version
            ),
        );
    }
    if survey.statistics_disabled {
        return no(
            "StatisticsDisabled",
            "the broker's management API keeps no statistics, without which a queue can't be \
             proved empty; set management_agent.disable_metrics_collector = false",
        );
    }
    if let Some(alarm) = survey.alarms.first() {
        return no("BrokerAlarm", format!("the broker blocks publishers: {alarm}; clear it first"));
    }
    if let Some(channel) = survey.transactions.first() {
        return no(
            "Transactions",
            format!(
                "{channel} publishes in transactions, whose messages come without bound after \
                     a cut; use publisher confirms"
            ),
        );
    }
    Ok(())
}

pub(super) fn queue_allows(name: &str, survey: &Survey) -> Checked<()> {
    let Some(queue) = &survey.queue else {
        return no(
            "QueueNotFound",
            format!(
                "queue {name} does not exist at the broker; is it the one that the pod consumes?"
            ),
        );
    };
    let refuse = |why: &str| no("QueueNotSupported", format!("queue {name} {why}"));
    if queue.exclusive {
        return refuse("is exclusive: it dies with the source's connection; declare it shared");
    }
    if queue.auto_delete {
        return refuse("is auto-delete: it vanishes when its consumer leaves; declare it durable");
    }
    if !queue.durable {
        return refuse("is not durable: a broker restart would lose it; declare it durable");
    }
    if let QueueType::Other(kind) = &queue.kind {
        return refuse(&format!("is a {kind}; classic and quorum queues can be moved"));
    }
    if let Some(key) = perishable(queue) {
        return refuse(&format!(
            "has {key} set by argument or policy, under which a message can vanish while it waits; \
             take it away while the pod moves"
        ));
    }
    if queue.arguments.get("x-single-active-consumer").is_some_and(|v| v == true) {
        return refuse(
            "has a single active consumer, so a standby could step in unseen; declare it without",
        );
    }
    Ok(())
}

fn perishable(queue: &Queue) -> Option<&'static str> {
    PERISHABLE.into_iter().find(|key| {
        queue.policy.contains_key(*key) || queue.arguments.contains_key(&format!("x-{key}"))
    })
}

pub(super) fn bindings_allow(queue: &str, survey: &Survey) -> Checked<()> {
    if survey.bindings.is_empty() {
        return no(
            "NoBinding",
            format!(
                "queue {queue} is bound to no exchange, and what comes through the default \
                     exchange can't be diverted"
            ),
        );
    }
    for (name, exchange) in &survey.exchanges {
        if !matches!(exchange.kind.as_str(), "direct" | "fanout" | "topic" | "headers") {
            return no(
                "ExchangeNotSupported",
                format!(
                    "exchange {name} is of type {}, where one more binding changes who gets \
                         what",
                    exchange.kind
                ),
            );
        }
    }
    Ok(())
}

/// Whatever the mode: another migration, whose operator does not hold the lock at this moment, has
/// diverted the queue's feed. Between its cuts the queue has no binding at all.
pub(super) fn undisturbed(spec: &Spec, queue: &str, survey: &Survey) -> Checked<()> {
    if let Some(ours) = survey.bindings.iter().find(|b| b.source.starts_with("ms2m.")) {
        return no(
            "LeftoverTopology",
            format!(
                "queue {queue} is still bound to {} by another migration; wait for its end",
                ours.source
            ),
        );
    }
    let named = |binding: &Binding| binding.source == spec.exchange;
    if !spec.exchange.is_empty() && !survey.bindings.iter().any(named) {
        return no(
            "ExchangeNotBound",
            format!(
                "queue {queue} is not bound to exchange {}; it is bound to {}; correct exchangeName, \
                 or leave it out",
                spec.exchange,
                sources(&survey.bindings)
            ),
        );
    }
    Ok(())
}

fn sources(bindings: &[Binding]) -> String {
    let mut names: Vec<&str> = bindings.iter().map(|b| b.source.as_str()).collect();
    names.dedup();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// The queue's consumer that is the source's.
pub(super) fn consumers_allow<'a>(
    spec: &Spec,
    queue: &str,
    pod: &Pod,
    survey: &'a Survey,
    counts: Counts,
) -> Checked<&'a Consumer> {
    let name = &spec.source_pod;
    if counts.consumers == 0 {
        return no(
            "NoConsumer",
            format!(
                "queue {queue} has no consumer; is {queue} the queue that pod {name} consumes?"
            ),
        );
    }
    // The management API's list lags behind the queue's own count, and has a consumer before it has
    // its channel.
    let known = survey.consumers.iter().all(|consumer| !consumer.peer.is_empty());
    if !known || survey.consumers.len() != counts.consumers as usize {
        return unknown(format!("the broker's statistics to say who consumes queue {queue}"));
    }
    let consumer = sources_own(queue, name, pod, survey)?;
    consumer_allows(queue, name, consumer)?;
    if !survey.control_queue {
        return no(
            "NoControlQueue",
            format!(
                "queue {} does not exist: pod {name} does not listen to the specification's \
                     control messages, as it must to be moved",
                control_queue(name)
            ),
        );
    }
    Ok(consumer)
}

fn sources_own<'a>(
    queue: &str,
    name: &str,
    pod: &Pod,
    survey: &'a Survey,
) -> Checked<&'a Consumer> {
    let Some(ip) = pod.ip.as_deref() else {
        return unknown(format!("pod {name} to have an address"));
    };
    let own: Vec<&Consumer> = survey.consumers.iter().filter(|it| it.is_at(ip)).collect();
    match own.as_slice() {
        [consumer] => Ok(consumer),
        [] => {
            let peers: Vec<&str> = survey.consumers.iter().map(Consumer::address).collect();
            no(
                "ForeignConsumer",
                format!(
                    "queue {queue} is consumed from {}, not from pod {name} at {ip}; name a pod \
                     that consumes it",
                    peers.join(", ")
                ),
            )
        }
        several => no(
            "SecondConsumer",
            format!(
                "pod {name} consumes queue {queue} {} times at once, and it is not known which of \
                 them obeys orders; let it consume the queue once",
                several.len()
            ),
        ),
    }
}

/// In mode `Replay` a second consumer would take messages that the copy needs.
pub(super) fn only_consumer(spec: &Spec, queue: &str, counts: Counts) -> Checked<()> {
    if counts.consumers == 1 {
        return Ok(());
    }
    no(
        "SecondConsumer",
        format!(
            "queue {queue} has {} consumers; pod {} must be the only one: stop the others while it \
             moves",
            counts.consumers, spec.source_pod
        ),
    )
}

fn consumer_allows(queue: &str, name: &str, consumer: &Consumer) -> Checked<()> {
    if !consumer.ack_required {
        return no(
            "AutoAck",
            format!(
                "pod {name} consumes queue {queue} without acknowledgements, so nobody knows \
                     what it has applied; consume with manual acknowledgements"
            ),
        );
    }
    if consumer.exclusive {
        return no(
            "ExclusiveConsumer",
            format!(
                "pod {name} consumes queue {queue} exclusively, so that its copy could not join; consume \
                 without exclusive"
            ),
        );
    }
    Ok(())
}

/// The broker gives up a client that is silent for as long as its heartbeat, and gives others what it
/// holds.
pub(super) fn heartbeat_allows(
    spec: &Spec,
    consumer: &Consumer,
    preflight: &Preflight,
) -> Checked<()> {
    let freeze = freeze::predicted_ms(preflight.memory_bytes);
    let Some(heartbeat) = consumer.heartbeat_s.filter(|it| *it > 0 && it * 1_000 <= freeze) else {
        return Ok(());
    };
    no(
        "HeartbeatTooShort",
        format!(
            "pod {}'s connection to the broker has a heartbeat of {heartbeat} s, and the pod stands \
             still for about {freeze} ms while its checkpoint is taken, so that the broker would give \
             it up; have it ask for a heartbeat of {} s or more",
            spec.source_pod,
            (freeze / 1_000 + 1).max(heartbeat + 1)
        ),
    )
}
