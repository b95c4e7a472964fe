//! What there is to know of a queue before anything is touched.

use std::collections::{BTreeMap, BTreeSet};

use shadow_protocol::broker::{
    Arguments, Binding, Consumer, Exchange, Queue, QueueType, Survey, Totals,
};
use shadow_protocol::janitor::{Belongings, Link};
use shadow_protocol::names::{exchange_of, listener, side_queue_of};

use super::connection_name;
use super::core::{Broker, ConnectionId, Content, Destination, ExchangeKind, Kind};

/// As which version of `RabbitMQ` it behaves.
const VERSION: &str = "4.1.0";

/// All there is to know of the queue `primary`; the source's control queue is `control`.
pub fn survey<M: Content>(core: &Broker<M>, primary: &str, control: &str) -> Survey {
    let bindings = core.bindings(&Destination::Queue(primary.into()));
    let alarm = || "a memory or disk alarm is in force".to_owned();
    let transactional: Vec<ConnectionId> = core.transactional().collect();
    let named = core.connections().filter(|(id, ..)| transactional.contains(id));
    Survey {
        version: VERSION.to_owned(),
        queue: queue(core, primary),
        exchanges: exchanges(core, &bindings),
        bindings,
        consumers: consumers(core, primary),
        totals: totals(core, primary),
        service_rate: None,
        control_queue: core.queue(control).is_some(),
        alarms: core.alarm().then(alarm).into_iter().collect(),
        transactions: named.map(|(id, peer, _)| connection_name(peer, id)).collect(),
        statistics_disabled: false,
    }
}

fn queue<M: Content>(core: &Broker<M>, name: &str) -> Option<Queue> {
    let options = core.queue(name)?;
    let kind = match options.kind {
        Kind::Classic => QueueType::Classic,
        Kind::Quorum => QueueType::Quorum,
    };
    Some(Queue {
        kind,
        durable: options.durable,
        exclusive: options.exclusive,
        auto_delete: false,
        arguments: serde_json::from_str(&options.arguments).unwrap_or_default(),
        policy: Arguments::new(),
    })
}

fn exchanges<M: Content>(core: &Broker<M>, bindings: &[Binding]) -> BTreeMap<String, Exchange> {
    let typed = |binding: &Binding| {
        let kind = match core.exchange_kind(&binding.source)? {
            ExchangeKind::Direct => "direct",
            ExchangeKind::Fanout => "fanout",
            ExchangeKind::Topic => "topic",
            ExchangeKind::Headers => "headers",
        };
        Some((binding.source.clone(), Exchange { kind: kind.to_owned() }))
    };
    bindings.iter().filter_map(typed).collect()
}

/// The live consumers of a queue.
pub fn consumers<M: Content>(core: &Broker<M>, queue: &str) -> Vec<Consumer> {
    let peers: BTreeMap<ConnectionId, _> =
        core.connections().map(|(id, peer, _)| (id, peer)).collect();
    let described = |(consumer, connection)| {
        let peer: &str = peers.get(&connection)?;
        Some(Consumer {
            tag: format!("{consumer:?}"),
            ack_required: true,
            exclusive: false,
            connection: connection_name(peer, connection),
            peer: peer.to_owned(),
            heartbeat_s: None,
        })
    };
    core.consumers_of(queue).map(|view| (view.id, view.connection)).filter_map(described).collect()
}

/// What a queue has seen, by the statistics, which lag.
pub fn totals<M: Content>(core: &Broker<M>, queue: &str) -> Totals {
    core.statistics(queue).ok().flatten().map(|shown| shown.totals).unwrap_or_default()
}

/// The queues and exchanges that `source` feeds: `(name, is_queue)`.
pub fn fed_by<M: Content>(core: &Broker<M>, source: &str) -> Vec<(String, bool)> {
    let named = |to: Destination| match to {
        Destination::Queue(name) => (name.to_string(), true),
        Destination::Exchange(name) => (name.to_string(), false),
    };
    let mut fed: Vec<_> = core.destinations(source).into_iter().map(named).collect();
    fed.sort();
    fed
}

/// What migrations have made, and the control queues.
pub fn belongings<M: Content>(core: &Broker<M>) -> Belongings {
    let exchanges: BTreeSet<String> = core
        .exchange_names()
        .filter(|it| exchange_of(it).is_some())
        .map(ToString::to_string)
        .collect();
    let ours = |name: &str| side_queue_of(name).is_some() || listener(name).is_some();
    let queues = core.queue_names().filter(|it| ours(it)).map(ToString::to_string).collect();
    let to_queues = core.queue_names().map(|it| (it.clone(), true));
    let to_exchanges = core.exchange_names().map(|it| (it.clone(), false));
    let mut links = Vec::new();
    for (name, is_queue) in to_queues.chain(to_exchanges) {
        let made =
            if is_queue { side_queue_of(&name).is_some() } else { exchanges.contains(&*name) };
        let to = name.to_string();
        let end = if is_queue { Destination::Queue(name) } else { Destination::Exchange(name) };
        let touching =
            core.bindings(&end).into_iter().filter(|it| made || exchanges.contains(&it.source));
        links.extend(touching.map(|binding| Link { binding, to: to.clone(), is_queue }));
    }
    links.sort();
    Belongings { exchanges, queues, links }
}

/// The names of the connections chosen by address and name.
pub fn connections<M: Content>(
    core: &Broker<M>,
    chosen: impl Fn(&str, &str) -> bool,
) -> Vec<String> {
    let named = core.connections().map(|(id, peer, _)| (peer, connection_name(peer, id)));
    named.filter(|(peer, name)| chosen(peer, name)).map(|(_, name)| name).collect()
}
