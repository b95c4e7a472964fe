//! The world in words: what there is at an instant, by name, so that two instants can be compared.

use shadow_broker::memory::core::Destination;

use super::{EXCHANGE, QUEUE, World};
use crate::record::Picture;

impl World {
    /// Everything that a person would ask about, a line each.
    pub(crate) fn picture(&mut self) -> Picture {
        let mut picture = Picture::new();
        let mut put = |key: String, value: String| {
            picture.insert(key, value);
        };
        if let Some(state) = self.state() {
            put("migration".into(), state.phase.step().to_string());
        }
        let lock =
            if self.operator.session.is_some() { "holds the lock" } else { "without the lock" };
        put("operator".into(), lock.into());
        put("published".into(), self.published.iter().sum::<u64>().to_string());
        let fed = self.broker.route(EXCHANGE, "", "");
        let fed: Vec<&str> = fed.iter().map(|queue| &**queue).collect();
        put(format!("exchange {EXCHANGE} feeds"), fed.join(", "));
        let bindings = self.broker.bindings(&Destination::Queue(QUEUE.into())).into_iter();
        let sources: Vec<String> = bindings.map(|binding| binding.source).collect();
        put(format!("queue {QUEUE} is bound to"), sources.join(", "));
        for name in self.broker.queue_names() {
            let Some(counts) = self.broker.counts(name) else { continue };
            put(format!("queue {name} ready"), counts.ready.to_string());
            if !name.starts_with("ms2m.control.") {
                put(format!("queue {name} consumers"), counts.consumers.to_string());
            }
        }
        for name in self.broker.exchange_names() {
            put(format!("exchange {name}"), "there".into());
        }
        for pod in self.pods.iter().filter(|pod| !pod.gone) {
            let of = |what: &str| format!("pod {} ({}) {what}", pod.name, pod.uid);
            put(of("node"), pod.node.clone());
            let state = match (pod.terminating, pod.ended, pod.process.is_some(), pod.ready()) {
                (true, ..) => "is being deleted",
                (_, true, ..) => "has ended",
                (_, _, false, _) => "is being started",
                (_, _, _, false) => "runs, not ready",
                _ => "runs, ready",
            };
            put(of("state"), state.into());
            let Some(process) = pod.process.and_then(|it| self.processes[it].as_ref()) else {
                continue;
            };
            put(of("applied"), process.memory.ledger.applied().to_string());
            let queue = process.consuming.as_ref().map_or("nothing", |it| &*it.queue);
            let frozen = if process.frozen { ", frozen" } else { "" };
            put(of("consumes"), format!("{queue}{frozen}"));
        }
        if let Some(checkpoint) = self.checkpoints.last() {
            put("checkpoint applied".into(), checkpoint.ledger.applied().to_string());
        }
        if let Some(job) = &self.job {
            let state = if self.now < job.done_at { "under way" } else { "has ended" };
            put("transfer".into(), state.into());
        }
        picture
    }

    /// Messages not yet applied by the source (or whoever took its place) and by the copy: by its
    /// process, else by its checkpoint, else by what it will be a checkpoint of.
    pub(crate) fn lags(&self) -> (u64, u64) {
        let applied = |ours: bool| {
            let mut pods = self.pods.iter().rev().filter(|pod| pod.ours == ours);
            let process = pods.find_map(|pod| self.processes[pod.process?].as_ref());
            process.map(|process| process.memory.ledger.applied())
        };
        let published: u64 = self.published.iter().sum();
        let base = self.base.applied();
        let source = applied(false).unwrap_or(base);
        let checkpoint = self.checkpoints.last().map(|memory| memory.ledger.applied());
        let copy = applied(true).or(checkpoint).unwrap_or(source);
        (published.saturating_sub(source), published.saturating_sub(copy))
    }

    /// A process has had a turn; `before` is what it had applied.
    pub(super) fn watch_work(&mut self, process: usize, before: &[u64]) {
        let copy = self.pods.iter().any(|pod| pod.ours && pod.process == Some(process));
        let now = self.now;
        if let (Some(watch), Some(found)) = (&mut self.watch, &self.processes[process]) {
            watch.applied(now, copy, before, &found.memory.ledger.last);
        }
    }
}
