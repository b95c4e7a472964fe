//! Declaring, binding, deleting.

use shadow_protocol::broker::{Binding, Counts};

use super::exchange::{Bound, predeclared};
use super::message::Content;
use super::queue::Queue;
use super::{
    Broker, ConnectionId, Destination, ExchangeOptions, Kind, Name, Object, QueueOptions, Refusal,
};

impl<M: Content> Broker<M> {
    /// Declares a queue; one that exists must be declared the same.
    pub fn declare_queue(
        &mut self,
        connection: ConnectionId,
        name: &str,
        options: QueueOptions,
    ) -> Result<Counts, Refusal> {
        self.check(connection)?;
        let failed = |why| Refusal::PreconditionFailed { name: name.into(), why };
        if options.kind == Kind::Quorum && (options.exclusive || !options.durable) {
            return Err(failed("a quorum queue is durable and not exclusive"));
        }
        if self.queues.contains_key(name) {
            let found = self.queue_for(connection, name)?;
            if found.options != options {
                return Err(failed("it exists and is declared otherwise"));
            }
        } else {
            let owner = options.exclusive.then_some(connection);
            self.queues.insert(name.into(), Queue::new(options, owner));
        }
        self.counts(name).ok_or_else(|| Refusal::no_queue(name))
    }

    /// Asks for a queue. It keeps an idle classic queue emitting statistics.
    pub fn declare_passive(
        &mut self,
        connection: ConnectionId,
        name: &str,
    ) -> Result<Counts, Refusal> {
        self.connection(connection)?;
        self.queue_for(connection, name)?.emissions.stirred = true;
        self.counts(name).ok_or_else(|| Refusal::no_queue(name))
    }

    /// Declares an exchange; one that exists must be declared the same.
    pub fn declare_exchange(
        &mut self,
        connection: ConnectionId,
        name: &str,
        options: ExchangeOptions,
    ) -> Result<(), Refusal> {
        self.check(connection)?;
        if name.is_empty() || predeclared(name).is_some() {
            return Err(reserved(Object::Exchange, name));
        }
        match self.exchanges.get(name) {
            Some(found) if *found != options => {
                let why = "it exists and is declared otherwise";
                Err(Refusal::PreconditionFailed { name: name.into(), why })
            }
            Some(_) => Ok(()),
            None => {
                self.exchanges.insert(name.into(), options);
                Ok(())
            }
        }
    }

    /// Binds a queue or an exchange; once, however often it is asked.
    pub fn bind(
        &mut self,
        connection: ConnectionId,
        to: &Destination,
        binding: &Binding,
    ) -> Result<(), Refusal> {
        self.check_binding(connection, &binding.source)?;
        match to {
            Destination::Queue(name) => {
                self.queue_for(connection, name)?;
            }
            Destination::Exchange(name) => {
                self.exchange_kind(name).ok_or_else(|| Refusal::no_exchange(name))?;
            }
        }
        let source = binding.source.as_str();
        self.exchange_kind(source).ok_or_else(|| Refusal::no_exchange(source))?;
        self.bindings.entry(source.into()).or_default().insert(bound(to, binding));
        Ok(())
    }

    /// Removes a binding; fine where it, or what it binds, does not exist.
    pub fn unbind(
        &mut self,
        connection: ConnectionId,
        to: &Destination,
        binding: &Binding,
    ) -> Result<(), Refusal> {
        self.check_binding(connection, &binding.source)?;
        if let Some(bindings) = self.bindings.get_mut(binding.source.as_str()) {
            bindings.remove(&bound(to, binding));
        }
        self.bindings.retain(|_, bindings| !bindings.is_empty());
        Ok(())
    }

    fn check_binding(&self, connection: ConnectionId, source: &str) -> Result<(), Refusal> {
        self.check(connection)?;
        if source.is_empty() {
            return Err(reserved(Object::Exchange, source));
        }
        Ok(())
    }

    /// Deletes an exchange with its bindings; fine when it does not exist.
    pub fn delete_exchange(&mut self, connection: ConnectionId, name: &str) -> Result<(), Refusal> {
        self.check(connection)?;
        if name.is_empty() || predeclared(name).is_some() {
            return Err(reserved(Object::Exchange, name));
        }
        self.drop_exchange(name);
        Ok(())
    }

    /// Deletes a queue with its bindings and messages; its consumers are gone. Fine when it does
    /// not exist. How many messages were ready.
    pub fn delete_queue(
        &mut self,
        connection: ConnectionId,
        name: &str,
        if_unused: bool,
    ) -> Result<u64, Refusal> {
        self.check(connection)?;
        if !self.queues.contains_key(name) {
            return Ok(0);
        }
        let kind = self.queue_for(connection, name)?.options.kind;
        let used = self.counts(name).is_some_and(|counts| counts.consumers > 0);
        match kind {
            Kind::Quorum if if_unused => {
                let why = "a quorum queue can't be deleted if unused";
                Err(Refusal::NotImplemented { name: name.into(), why })
            }
            Kind::Classic if if_unused && used => {
                let why = "it is in use";
                Err(Refusal::PreconditionFailed { name: name.into(), why })
            }
            _ => Ok(self.drop_queue(name)),
        }
    }

    /// Drops the ready messages of a queue; how many.
    pub fn purge(&mut self, connection: ConnectionId, name: &str) -> Result<u64, Refusal> {
        self.check(connection)?;
        let purged = self.queue_for(connection, name)?.purge();
        self.feed(name);
        Ok(purged)
    }

    /// A queue, if this connection may use it.
    pub(super) fn queue_for(
        &mut self,
        connection: ConnectionId,
        name: &str,
    ) -> Result<&mut Queue<M>, Refusal> {
        let queue = self.queues.get_mut(name).ok_or_else(|| Refusal::no_queue(name))?;
        if queue.owner.is_some_and(|owner| owner != connection) {
            return Err(Refusal::Locked { name: name.into() });
        }
        queue.emissions.stirred = true;
        Ok(queue)
    }

    pub(super) fn drop_queue(&mut self, name: &str) -> u64 {
        let Some(mut queue) = self.queues.remove(name) else { return 0 };
        for consumer in &queue.consumers {
            self.consumers.remove(consumer);
        }
        self.drop_bindings(|to| matches!(to, Destination::Queue(queue) if **queue == *name));
        queue.purge()
    }

    pub(super) fn drop_exchange(&mut self, name: &str) {
        self.exchanges.remove(name);
        self.bindings.remove(name);
        self.drop_bindings(|to| matches!(to, Destination::Exchange(it) if **it == *name));
    }

    fn drop_bindings(&mut self, gone: impl Fn(&Destination) -> bool) {
        self.bindings.retain(|_, bindings| {
            bindings.retain(|bound| !gone(&bound.to));
            !bindings.is_empty()
        });
    }
}

impl<M> Broker<M> {
    /// What leads to `to`, sorted; the default exchange's left out.
    pub fn bindings(&self, to: &Destination) -> Vec<Binding> {
        let all =
            self.bindings.iter().flat_map(|(source, all)| all.iter().map(move |it| (source, it)));
        all.filter(|(_, bound)| bound.to == *to)
            .map(|(source, bound)| Binding {
                source: source.to_string(),
                routing_key: bound.key.to_string(),
                arguments: bound.arguments.to_string(),
            })
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect()
    }

    /// Where the bindings of an exchange lead, each once.
    pub fn destinations(&self, source: &str) -> Vec<Destination> {
        let mut all: Vec<Destination> =
            self.bindings.get(source).into_iter().flatten().map(|it| it.to.clone()).collect();
        all.dedup();
        all
    }

    /// All queues, sorted.
    pub fn queue_names(&self) -> impl Iterator<Item = &Name> {
        self.queues.keys()
    }

    /// All exchanges but the predeclared, sorted.
    pub fn exchange_names(&self) -> impl Iterator<Item = &Name> {
        self.exchanges.keys()
    }

    /// A queue's declaration.
    pub fn queue(&self, name: &str) -> Option<&QueueOptions> {
        self.queues.get(name).map(|queue| &queue.options)
    }

    /// The connection that an exclusive queue belongs to.
    pub fn owner(&self, queue: &str) -> Option<ConnectionId> {
        self.queues.get(queue)?.owner
    }
}

fn bound(to: &Destination, binding: &Binding) -> Bound {
    let Binding { source: _, routing_key, arguments } = binding;
    Bound { to: to.clone(), key: routing_key.as_str().into(), arguments: arguments.as_str().into() }
}

fn reserved(object: Object, name: &str) -> Refusal {
    Refusal::AccessRefused { object, name: name.into(), why: "operation not permitted" }
}
