//! Changes of the topology, each idempotent.

use shadow_protocol::broker::Topology;

use super::Core;
use super::core::{Destination, ExchangeOptions, Kind, QueueOptions, Refusal};
use super::session::MemorySession;
use crate::Error;

impl MemorySession {
    /// All changes but a move, which is not one instant.
    pub(super) fn change(&self, core: &mut Core, change: &Topology) -> Result<(), Error> {
        match change {
            Topology::DeclareControlQueue { name, like } => {
                self.declare_twin(core, name, like)?;
            }
            Topology::DeleteQueue { name } => self.check_unused(core, name)?,
            _ => {}
        }
        self.carry_out(core, change)
            .map_err(|refusal| self.refused(format!("changing the topology ({change:?})"), refusal))
    }

    fn carry_out(&self, core: &mut Core, change: &Topology) -> Result<(), Refusal> {
        let client = self.topology;
        let queue_to = |name: &String| Destination::Queue(name.as_str().into());
        let exchange_to = |name: &String| Destination::Exchange(name.as_str().into());
        match change {
            Topology::DeclareExchange { name, alternate } => {
                let options = ExchangeOptions::internal(alternate.as_deref().map(Into::into));
                core.declare_exchange(client, name, options)
            }
            Topology::DeclareSideQueue { name } => {
                core.declare_queue(client, name, QueueOptions::side()).map(|_| ())
            }
            Topology::BindQueue { queue, binding } => core.bind(client, &queue_to(queue), binding),
            Topology::UnbindQueue { queue, binding } => {
                core.unbind(client, &queue_to(queue), binding)
            }
            Topology::BindExchange { destination, binding } => {
                core.bind(client, &exchange_to(destination), binding)
            }
            Topology::UnbindExchange { destination, binding } => {
                core.unbind(client, &exchange_to(destination), binding)
            }
            Topology::DeleteExchange { name } => core.delete_exchange(client, name),
            Topology::DeleteQueue { name } => core.delete_queue(client, name, false).map(|_| ()),
            Topology::Purge { queue } | Topology::DeclareControlQueue { name: queue, .. } => {
                core.purge(client, queue).map(|_| ())
            }
            Topology::Move { .. } => Ok(()),
        }
    }

    fn declare_twin(&self, core: &mut Core, name: &str, like: &str) -> Result<(), Error> {
        let model = core.queue(like).cloned();
        let options = model.unwrap_or_else(|| QueueOptions::durable(Kind::Classic));
        if options.exclusive {
            return Err(Error::Invalid {
                what: format!("the control queue {like:?}"),
                why: "it is exclusive, so no twin of it can be declared; declare it durable"
                    .to_owned(),
            });
        }
        let declared = core.declare_queue(self.topology, name, options);
        declared
            .map(|_| ())
            .map_err(|refusal| self.refused(format!("declaring queue {name:?}"), refusal))
    }

    fn check_unused(&self, core: &mut Core, name: &str) -> Result<(), Error> {
        let consumers = self.count(core, name)?.map_or(0, |counts| counts.consumers);
        if consumers == 0 {
            return Ok(());
        }
        let answer = format!("it still has {consumers} consumer(s)");
        Err(self.failed(format!("deleting queue {name:?}"), answer))
    }
}
