//! What may be left of a migration of which nobody knows any more how far it was.

use shadow_broker::memory::core::Destination;
use shadow_protocol::broker::Binding;
use shadow_protocol::names::{control_queue, exchange_of, listener, side_queue_of};

use super::{Shop, of_migrations};
use crate::message::{Broker, Message, Serials};
use crate::verdict::missing;
use crate::world::{EXCHANGE, QUEUE};

pub(super) fn violations(shop: &Shop) -> Vec<String> {
    let mut found = of_migrations(shop);
    let pods = shop.kube.all("pods");
    found.extend(
        pods.iter()
            .filter(|pod| !pod["metadata"]["finalizers"].is_null())
            .map(|pod| format!("the pod is held: {}", pod["metadata"])),
    );
    if shop.applications.ledgers().is_empty() {
        found.push("nobody runs".to_owned());
    }
    if !shop.plan.scenario.alone() {
        let names: Vec<String> = pods
            .iter()
            .filter_map(|pod| pod["metadata"]["name"].as_str())
            .map(control_queue)
            .collect();
        let told = said(shop);
        found.extend(shop.applications.broker.quietly(|core| broker(core, &names, &told)));
    }
    found.extend(lost(shop));
    found
}

/// The sentences of the events.
fn said(shop: &Shop) -> Vec<String> {
    let events = shop.kube.all("events");
    events.iter().filter_map(|event| event["note"].as_str().map(str::to_owned)).collect()
}

/// Nothing that is of no use stays, and what stays is told of.
fn broker(core: &mut Broker, controls: &[String], told: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    let sides = core.queue_names().filter(|name| side_queue_of(name).is_some());
    let sides: Vec<String> = sides.map(ToString::to_string).collect();
    let consumed = |core: &Broker, name: &str| core.counts(name).is_some_and(|it| it.consumers > 0);
    let in_use = sides.iter().any(|name| consumed(core, name));
    for name in &sides {
        let held = core.figures(name).map_or(0, |it| it.ready + it.unacknowledged);
        let useless = held == 0 && !in_use;
        if useless {
            found.push(format!("{name} is left, and empty"));
        }
        let tells = |words: &String| words.contains(&format!("queue {name} "));
        if (!in_use || consumed(core, name)) && !told.iter().any(tells) {
            found.push(format!("{name} is left, and nobody was told: {told:?}"));
        }
    }
    let exchanges = core.exchange_names().filter(|name| exchange_of(name).is_some()).count();
    if exchanges > 0 && !in_use {
        found.push(format!("{exchanges} exchanges are left"));
    }
    let bindings = core.bindings(&Destination::Queue(QUEUE.into()));
    if !in_use && bindings != [Binding::plain(EXCHANGE)] {
        found.push(format!("{QUEUE} is bound by {bindings:?}"));
    }
    for name in core.queue_names().filter(|name| listener(name).is_some()) {
        if !in_use && !controls.iter().any(|it| **it == **name) {
            found.push(format!("{name} is left, and nobody has that name"));
        }
    }
    let open = core.connections().filter(|(.., label)| label.starts_with("shadow/")).count();
    if open > 0 {
        found.push(format!("{open} connections of the operator are open"));
    }
    found
}

/// What nobody has ever applied, and is in no queue.
fn lost(shop: &Shop) -> Option<String> {
    let ledgers = shop.applications.all_ledgers();
    let works = shop.applications.works();
    let mut ledgers = ledgers.iter();
    let mut open = missing(ledgers.next()?, &works.published).without(&works.unconfirmed);
    for ledger in ledgers {
        let theirs = missing(ledger, &works.published);
        open = open.without(&open.without(&theirs));
    }
    shop.applications.broker.quietly(|core| waits(core, &mut open));
    let lost = open.count();
    (lost > 0).then(|| format!("{lost} messages are lost: {open:?}"))
}

fn waits(core: &mut Broker, open: &mut Serials) {
    let queues: Vec<_> = core.queue_names().cloned().collect();
    for queue in queues {
        for (message, count, _) in core.ready(&queue) {
            if let Message::Data(first) = message {
                open.remove((*first, count));
            }
        }
    }
}
