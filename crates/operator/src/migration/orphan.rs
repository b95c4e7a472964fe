//! A migration whose object is taken away by force, without its finalizer: it is brought to its end from
//! what this process knows, as one that somebody deletes. Nobody can read how far it is, so no other
//! operator goes on with it; what is left then, `janitor.rs` looks for.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use kube::api::ListParams;
use shadow_api::StatefulMigration;
use shadow_protocol::observation::Trouble;

use super::{Migration, Unwritten};
use crate::act::PATIENCE;
use crate::observe::chain;
use crate::{clock, decide as mapping};

/// A migration's object as it was last seen.
#[derive(Clone)]
pub struct Seen {
    /// The object.
    pub object: StatefulMigration,
    /// It is there no more.
    pub gone: bool,
}

impl Migration {
    /// The object is gone: from here on it is kept in memory only.
    pub(super) fn orphan(&mut self) {
        if std::mem::replace(&mut self.orphaned, true) || !self.is_under_way() {
            return;
        }
        let now = i64::try_from(clock::now().0).ok();
        let now = now.and_then(|now| jiff::Timestamp::from_millisecond(now).ok());
        self.object.metadata.deletion_timestamp.get_or_insert(Time(now.unwrap_or_default()));
        let step = mapping::stored(&self.object).ok().flatten().map(|state| state.phase.step());
        tracing::warn!(
            ?step,
            "the object was removed by force, without its finalizer; the migration is brought to its end \
             without it: don't stop the operator meanwhile"
        );
    }

    /// An API server that does not serve the kind for the moment finds none either: only a list tells.
    pub(super) async fn whether_gone(&self) -> Unwritten {
        let name = self.object.name_any();
        let named = ListParams::default().fields(&format!("metadata.name={name}"));
        let trouble = |why: String| {
            let message = format!("look whether migration {name} is still there: {why}");
            let reason = "ApiUnavailable".to_owned();
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

    /// Something has been begun, and is not at its end.
    pub(super) fn is_under_way(&self) -> bool {
        matches!(mapping::stored(&self.object), Ok(Some(state)) if !state.phase.is_final())
    }
}
