//! The broker objects of a migration, by name.
//!
//! Every name is derived from the primary queue and the migration's UID, so that a crashed operator
//! finds its things again and two migrations never meet. Side queues keep the prefix `Q.`, because
//! permissions match on it.

use serde::{Deserialize, Serialize};

/// How many hexadecimal digits of the UID go into names: enough to be unique on one queue.
const ID_DIGITS: usize = 10;

/// What marks the id of a second hop.
const SECOND: &str = "-2";

/// What the names of control queues begin with.
const CONTROL: &str = "ms2m.control.";

/// Queue of the specification through which an application takes its orders.
pub fn control_queue(pod: &str) -> String {
    format!("{CONTROL}{pod}")
}

/// The pod that takes its orders from `queue`, if it is a control queue.
pub fn listener(queue: &str) -> Option<&str> {
    queue.strip_prefix(CONTROL)
}

/// Exclusive queue that makes a migration the only one of queue `primary`.
pub fn lock_queue(primary: &str) -> String {
    format!("ms2m.lock.{primary}")
}

/// The id in the name of a migration's exchange, of whichever hop.
pub fn exchange_of(name: &str) -> Option<&str> {
    let (id, kind) = name.strip_prefix("ms2m.")?.split_once('.')?;
    (matches!(kind, "gate" | "hold" | "both") && is_id(id)).then_some(id)
}

/// The primary queue and the id in the name of a side queue.
pub fn side_queue_of(name: &str) -> Option<(&str, &str)> {
    let (rest, number) = name.rsplit_once('.')?;
    let (rest, id) = rest.rsplit_once('.')?;
    let kinds = [".ms2m-source", ".ms2m-park", ".ms2m-wake"];
    let parted = kinds.into_iter().find_map(|kind| rest.strip_suffix(kind));
    let primary = parted.filter(|primary| !primary.is_empty())?;
    (matches!(number, "1" | "2") && is_id(id)).then_some((primary, id))
}

/// The id of a migration, whichever hop of it `id` names.
pub fn first_hop(id: &str) -> &str {
    id.strip_suffix(SECOND).unwrap_or(id)
}

fn is_id(id: &str) -> bool {
    let id = first_hop(id);
    id.len() == ID_DIGITS && id.chars().all(|digit| digit.is_ascii_alphanumeric())
}

/// The names of one migration's broker objects; empty where there is no broker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Names {
    /// `Q`, the application's own queue.
    pub primary: String,
    /// Exclusive queue held on the topology connection.
    pub lock: String,
    /// Fanout exchange through which all of `Q`'s feed passes; its alternate is `hold`.
    pub gate: String,
    /// Fanout exchange that gets what the gate can't route.
    pub hold: String,
    /// Fanout exchange bound to `Q` and `s2`.
    pub both: String,
    /// First side queue: the source's from cut A to the checkpoint.
    pub s1: String,
    /// Second side queue: the source's after the checkpoint.
    pub s2: String,
    /// Always empty: consuming it means standing still, as for the checkpoint.
    pub park: String,
    /// Holds the order that wakes a source which stands still for its checkpoint, should nobody be there to
    /// tell it to go on; empty in what an earlier version has stored.
    #[serde(default)]
    pub wake: String,
    /// Always empty: where the source stands still in mode `Park` while its copy, which wakes on
    /// `park`, is restored.
    pub park2: String,
}

impl Names {
    /// Names for the migration with this `uid` of the queue `primary`.
    pub fn new(primary: &str, uid: &str) -> Self {
        let id: String = uid.chars().filter(char::is_ascii_alphanumeric).take(ID_DIGITS).collect();
        Self::with_id(primary, &id)
    }

    fn with_id(primary: &str, id: &str) -> Self {
        Self {
            primary: primary.to_owned(),
            lock: lock_queue(primary),
            gate: Self::gate_of(id),
            hold: format!("ms2m.{id}.hold"),
            both: format!("ms2m.{id}.both"),
            s1: format!("{primary}.ms2m-source.{id}.1"),
            s2: format!("{primary}.ms2m-source.{id}.2"),
            park: format!("{primary}.ms2m-park.{id}.1"),
            wake: format!("{primary}.ms2m-wake.{id}.1"),
            park2: format!("{primary}.ms2m-park.{id}.2"),
        }
    }

    /// Names for the second hop of the same migration.
    #[must_use]
    pub fn second(&self) -> Self {
        let id = self.gate.trim_start_matches("ms2m.").trim_end_matches(".gate");
        Self::with_id(&self.primary, &format!("{id}{SECOND}"))
    }

    /// The gate of the hop that `id` names.
    pub(crate) fn gate_of(id: &str) -> String {
        format!("ms2m.{id}.gate")
    }

    /// The exchanges a migration makes.
    pub fn exchanges(&self) -> [&str; 3] {
        [&self.gate, &self.both, &self.hold]
    }

    /// The side queues a migration makes.
    pub fn side_queues(&self) -> impl Iterator<Item = &str> {
        let all = [&self.s1, &self.s2, &self.park, &self.park2, &self.wake];
        all.into_iter().map(String::as_str).filter(|name| !name.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_the_prefix_and_the_id() {
        let names = Names::new("app.events", "0f9d3c1e-aaaa-bbbb-cccc-000000000000");
        assert_eq!(names.gate, "ms2m.0f9d3c1eaa.gate");
        assert_eq!(names.s2, "app.events.ms2m-source.0f9d3c1eaa.2");
        assert_eq!(names.lock, "ms2m.lock.app.events");
        assert_eq!(listener(&control_queue("consumer-0")), Some("consumer-0"));
        assert_eq!(listener(&names.s2), None);
        let second = names.second();
        assert_eq!(second.gate, "ms2m.0f9d3c1eaa-2.gate");
        assert_eq!(second.s1, "app.events.ms2m-source.0f9d3c1eaa-2.1");
        assert_eq!(second.lock, names.lock);
    }

    #[test]
    fn names_tell_whose_they_are() {
        let first = Names::new("app.events", "0f9d3c1e-aaaa-bbbb-cccc-000000000000");
        let id = "0f9d3c1eaa";
        for names in [&first, &first.second()] {
            for exchange in names.exchanges() {
                assert_eq!(exchange_of(exchange).map(first_hop), Some(id), "{exchange}");
            }
            for queue in names.side_queues() {
                let (primary, found) = side_queue_of(queue).unwrap();
                assert_eq!((primary, first_hop(found)), ("app.events", id), "{queue}");
            }
        }
        for other in ["ms2m.gate", "ms2m.0f9d3c1eaa.gates", "ms2m.short.gate", "0f9d3c1eaa.gate"] {
            assert_eq!(exchange_of(other), None, "{other}");
        }
        let queues =
            [".ms2m-source.0f9d3c1eaa.1", "a.ms2m-source.0f9d3c1eaa.3", "a.ms2m-sink.0f9d3c1eaa.1"];
        for other in queues.into_iter().chain(["a.ms2m-source.1", "app.events"]) {
            assert_eq!(side_queue_of(other), None, "{other}");
        }
    }
}
