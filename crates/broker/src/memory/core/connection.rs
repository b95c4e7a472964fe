//! Connections, restarts.

use std::collections::{BTreeSet, VecDeque};

use shadow_protocol::broker::Totals;

use super::message::Content;
use super::publish::Routed;
use super::statistics::Emissions;
use super::{Broker, ConnectionId, ConsumerId, Name, Refusal};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Connection<M> {
    /// Network address of the client.
    peer: Name,
    /// What the client calls itself.
    label: Name,
    /// Publishes of the open transaction, if this connection's channel is transactional.
    pub(super) transaction: Option<VecDeque<Routed<M>>>,
}

impl<M: Content> Broker<M> {
    /// A client connects from the address `peer`.
    pub fn connect(&mut self, peer: &str, label: &str) -> ConnectionId {
        let id = ConnectionId(self.id());
        let connection = Connection { peer: peer.into(), label: label.into(), transaction: None };
        self.connections.insert(id, connection);
        id
    }

    /// Whether a connection is open.
    pub fn connected(&self, connection: ConnectionId) -> bool {
        self.connections.contains_key(&connection)
    }

    /// The open connections, their clients' addresses, and what these call themselves.
    pub fn connections(&self) -> impl Iterator<Item = (ConnectionId, &Name, &Name)> {
        self.connections.iter().map(|(id, it)| (*id, &it.peer, &it.label))
    }

    /// Connections with an open transaction.
    pub fn transactional(&self) -> impl Iterator<Item = ConnectionId> {
        let open = self.connections.iter().filter(|(_, it)| it.transaction.is_some());
        open.map(|(id, _)| *id)
    }

    /// A connection ends from the client's side, in order or not: what it held returns, in order
    /// and as redelivered; its exclusive queues and its transaction are gone. What it sent under an
    /// alarm is not: it arrives when the alarm ends.
    pub fn close(&mut self, connection: ConnectionId) {
        self.disconnect(&BTreeSet::from([connection]));
    }

    /// The same by the broker (management API): what it sent under an alarm is discarded unread.
    pub fn close_by_broker(&mut self, connection: ConnectionId) {
        self.blocked.retain(|(sender, _)| *sender != connection);
        self.close(connection);
    }

    /// The broker restarts: connections end; what is not durable, was not read, or was routed and
    /// not arrived is gone; statistics begin anew.
    pub fn restart(&mut self) {
        self.blocked.clear();
        self.trailing.clear();
        self.alarm = false;
        self.disconnect(&self.connections.keys().copied().collect());
        let gone = |durable: bool, name: &Name| (!durable).then(|| name.clone());
        let queues: Vec<Name> =
            self.queues.iter().filter_map(|(name, it)| gone(it.options.durable, name)).collect();
        let exchanges: Vec<Name> =
            self.exchanges.iter().filter_map(|(name, it)| gone(it.durable, name)).collect();
        for queue in queues {
            self.drop_queue(&queue);
        }
        for exchange in exchanges {
            self.drop_exchange(&exchange);
        }
        for queue in self.queues.values_mut() {
            (queue.emissions, queue.totals) = (Emissions::default(), Totals::default());
        }
    }

    /// Several at once: nothing that one gives back goes to another.
    fn disconnect(&mut self, ending: &BTreeSet<ConnectionId>) {
        self.connections.retain(|id, _| !ending.contains(id));
        let of_them = self.consumers.iter().filter(|(_, it)| ending.contains(&it.connection));
        let consumers: Vec<ConsumerId> = of_them.map(|(id, _)| *id).collect();
        self.drop_consumers(&consumers);
        let theirs = |owner: Option<ConnectionId>| owner.is_some_and(|it| ending.contains(&it));
        let queues = self.queues.iter().filter(|(_, it)| theirs(it.owner));
        let queues: Vec<Name> = queues.map(|(name, _)| name.clone()).collect();
        for queue in queues {
            self.drop_queue(&queue);
        }
    }

    pub(super) fn connection(
        &mut self,
        connection: ConnectionId,
    ) -> Result<&mut Connection<M>, Refusal> {
        self.connections.get_mut(&connection).ok_or(Refusal::ConnectionGone)
    }

    /// Refuses a connection that is closed.
    pub(super) fn check(&self, connection: ConnectionId) -> Result<(), Refusal> {
        if self.connected(connection) { Ok(()) } else { Err(Refusal::ConnectionGone) }
    }
}
