//! A migration whose object is taken away by force, without its finalizer: it is brought to its end from
//! what this process knows, as one that somebody deletes. Nobody can read how far it is, so no other
//! operator goes on with it; what is left then, `janitor.rs` looks for.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use shadow_api::StatefulMigration;

use super::Migration;
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

    /// Something has been begun, and is not at its end.
    pub(super) fn is_under_way(&self) -> bool {
        matches!(mapping::stored(&self.object), Ok(Some(state)) if !state.phase.is_final())
    }
}
