//! A migration's state is stored before it is acted on.

use kube::ResourceExt as _;
use kube::api::{ListParams, PostParams};
use shadow_api::StatefulMigration;
use shadow_protocol::decide::Decision;
use shadow_protocol::observation::{Observation, Trouble};
use shadow_protocol::phase::{Phase, State};

use super::{Memory, Migration};
use crate::act::{PATIENCE, UNAVAILABLE, kube_trouble};
use crate::observe::chain;
use crate::{decide as mapping, report};

/// Why the object could not be written.
pub(super) enum Unwritten {
    /// Someone else wrote it; the fresh one has been read.
    Stale,
    /// It is gone.
    Gone,
    /// The API server did not take it.
    Failed(Trouble),
}

impl Migration {
    /// Stores a new state before it is acted on. The object's `resourceVersion` is the fence.
    pub(super) async fn store(
        &mut self,
        old: &State,
        decision: &Decision,
        seen: &Observation,
    ) -> Result<(), Unwritten> {
        let mut object = self.object.clone();
        object.status = Some(report::status(&self.object, decision, seen));
        self.write(object).await?;
        for event in report::events(old, &decision.state) {
            self.publish(event).await;
        }
        if let (Phase::Pending, Some(plan)) = (&old.phase, decision.state.phase.plan()) {
            self.warn(plan).await;
        }
        Ok(())
    }

    pub(super) async fn write(&mut self, mut object: StatefulMigration) -> Result<(), Unwritten> {
        if self.orphaned {
            self.object.status = object.status;
            return Ok(());
        }
        let name = object.name_any();
        let led = self.context.generation;
        object.status.get_or_insert_default().leader_generation = (led > 0).then_some(led);
        let api = self.api();
        let params = PostParams::default();
        let writing = api.replace_status(&name, &params, &object);
        let Ok(written) = tokio::time::timeout(PATIENCE, writing).await else {
            return Err(Unwritten::Failed(Trouble {
                reason: UNAVAILABLE.to_owned(),
                message: format!("write the status of migration {name}: no answer"),
                permanent: false,
            }));
        };
        match written {
            Ok(object) => {
                self.object = object;
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let ours = mapping::stored(&self.object).ok().flatten();
                match self.api().get_opt(&name).await {
                    // Another one of the same name.
                    Ok(Some(fresh)) if fresh.uid() != self.object.uid() => Err(Unwritten::Gone),
                    Ok(Some(fresh)) => {
                        let stored = mapping::stored(&fresh).ok().flatten();
                        if stored != ours {
                            self.overtaken(stored.as_ref());
                        }
                        self.object = fresh;
                        Err(Unwritten::Stale)
                    }
                    Ok(None) => Err(self.whether_gone().await),
                    Err(error) => Err(Unwritten::Failed(api_trouble(&name, &error))),
                }
            }
            Err(kube::Error::Api(status)) if status.code == 404 => Err(self.whether_gone().await),
            Err(error) => Err(Unwritten::Failed(api_trouble(&name, &error))),
        }
    }

    /// The object holds another state than this process thought.
    fn overtaken(&mut self, stored: Option<&State>) {
        if stored.is_some() && stored == self.memory.unanswered.take().as_ref() {
            // Its own, whose answer was lost.
            self.memory.next_step();
            self.memory.own = true;
        } else {
            // Another writer's: what this process remembers is worthless.
            self.memory = Memory::default();
        }
    }

    /// An API server that does not serve the kind for the moment finds none either: only a list tells.
    async fn whether_gone(&self) -> Unwritten {
        let name = self.object.name_any();
        let named = ListParams::default().fields(&format!("metadata.name={name}"));
        let trouble = |why: String| {
            let message = format!("look whether migration {name} is still there: {why}");
            let reason = UNAVAILABLE.to_owned();
            Unwritten::Failed(Trouble { reason, message, permanent: false })
        };
        match tokio::time::timeout(PATIENCE, self.api().list(&named)).await {
            Ok(Ok(found)) if found.items.iter().any(|it| it.uid() == self.object.uid()) => {
                trouble("it is, but can't be written".to_owned())
            }
            Ok(Ok(_)) => Unwritten::Gone,
            Ok(Err(error)) => trouble(chain(&error)),
            Err(_) => trouble("no answer".to_owned()),
        }
    }
}

fn api_trouble(name: &str, error: &kube::Error) -> Trouble {
    // Nothing else can be done than to try again.
    Trouble { permanent: false, ..kube_trouble("write the status of migration", name, error) }
}
