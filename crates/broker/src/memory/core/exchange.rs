//! Exchanges, bindings, and what matches.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Broker, Name};

/// How an exchange chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ExchangeKind {
    /// By equal keys.
    Direct,
    /// All.
    Fanout,
    /// By patterns of words.
    Topic,
    /// By headers.
    Headers,
}

/// An exchange's declaration.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ExchangeOptions {
    /// How it chooses.
    pub kind: ExchangeKind,
    /// Survives a restart of the broker.
    pub durable: bool,
    /// Nobody may publish to it.
    pub internal: bool,
    /// Gets what matches no binding.
    pub alternate: Option<Name>,
}

impl ExchangeOptions {
    /// Durable, for everybody.
    pub fn durable(kind: ExchangeKind) -> Self {
        Self { kind, durable: true, internal: false, alternate: None }
    }

    /// Durable, internal, fanout: as a migration's own.
    pub fn internal(alternate: Option<Name>) -> Self {
        Self { kind: ExchangeKind::Fanout, durable: true, internal: true, alternate }
    }
}

/// Where a binding leads.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Destination {
    /// To a queue.
    Queue(Name),
    /// To an exchange.
    Exchange(Name),
}

/// A binding, without its source.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Bound {
    pub(super) to: Destination,
    pub(super) key: Name,
    /// Canonical JSON text, empty for none.
    pub(super) arguments: Name,
}

/// The kind of a predeclared exchange.
pub(super) fn predeclared(name: &str) -> Option<ExchangeKind> {
    match name {
        "amq.direct" => Some(ExchangeKind::Direct),
        "amq.fanout" => Some(ExchangeKind::Fanout),
        "amq.topic" => Some(ExchangeKind::Topic),
        "amq.headers" | "amq.match" => Some(ExchangeKind::Headers),
        _ => None,
    }
}

impl<M> Broker<M> {
    /// The kind of the exchange `name`, if it exists.
    pub fn exchange_kind(&self, name: &str) -> Option<ExchangeKind> {
        self.exchanges.get(name).map(|exchange| exchange.kind).or_else(|| predeclared(name))
    }

    /// The queues that a message reaches now, each once however many routes lead there, sorted.
    pub fn route(&self, exchange: &str, key: &str, headers: &str) -> Vec<Name> {
        if exchange.is_empty() {
            return self
                .queues
                .get_key_value(key)
                .map(|(name, _)| name.clone())
                .into_iter()
                .collect();
        }
        // A handful of each: searching them is quicker than keeping them in a set.
        let (mut queues, mut seen) = (Vec::new(), vec![exchange]);
        let mut next = 0;
        while let Some(&source) = seen.get(next) {
            next += 1;
            let Some(kind) = self.exchange_kind(source) else { continue };
            let mut matched = false;
            for bound in self.bindings.get(source).into_iter().flatten() {
                if !bound.matches(kind, key, headers) {
                    continue;
                }
                matched = true;
                match &bound.to {
                    Destination::Queue(queue) => queues.push(queue.clone()),
                    Destination::Exchange(next) if !seen.contains(&&**next) => seen.push(next),
                    Destination::Exchange(_) => {}
                }
            }
            let alternate = self.exchanges.get(source).and_then(|it| it.alternate.as_deref());
            if let Some(alternate) = alternate.filter(|it| !matched && !seen.contains(it)) {
                seen.push(alternate);
            }
        }
        queues.sort_unstable();
        queues.dedup();
        queues
    }
}

impl Bound {
    fn matches(&self, kind: ExchangeKind, key: &str, headers: &str) -> bool {
        match kind {
            ExchangeKind::Fanout => true,
            ExchangeKind::Direct => *self.key == *key,
            ExchangeKind::Topic => topic(&self.key, key),
            ExchangeKind::Headers => headers_match(&self.arguments, headers),
        }
    }
}

/// Whether the words of `key` fit `pattern`: `*` is one word, `#` any number.
pub(super) fn topic(pattern: &str, key: &str) -> bool {
    let words = |text: &'_ str| -> Vec<String> {
        if text.is_empty() { Vec::new() } else { text.split('.').map(str::to_owned).collect() }
    };
    fits(&words(pattern), &words(key))
}

fn fits(pattern: &[String], key: &[String]) -> bool {
    let Some((word, rest)) = pattern.split_first() else { return key.is_empty() };
    if word == "#" {
        return (0..=key.len()).any(|skipped| fits(rest, &key[skipped..]));
    }
    key.split_first()
        .is_some_and(|(first, more)| (word == "*" || word == first) && fits(rest, more))
}

/// Whether a message's headers are what a binding asks for; both as JSON texts.
pub(super) fn headers_match(arguments: &str, headers: &str) -> bool {
    let table =
        |text: &str| -> BTreeMap<String, Value> { serde_json::from_str(text).unwrap_or_default() };
    let (wanted, given) = (table(arguments), table(headers));
    let mode = wanted.get("x-match").and_then(Value::as_str).unwrap_or("all");
    let with_x = mode.ends_with("-with-x");
    let mut asked = wanted
        .iter()
        .filter(|(name, _)| *name != "x-match" && (with_x || !name.starts_with("x-")))
        .map(|(name, value)| match value {
            // A binding without a value asks only for presence.
            Value::Null => given.contains_key(name),
            value => given.get(name) == Some(value),
        });
    if mode.starts_with("any") { asked.any(|fits| fits) } else { asked.all(|fits| fits) }
}
