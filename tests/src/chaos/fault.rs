//! What goes wrong on purpose, and when.

use std::fmt;

/// One end of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Where the pod comes from.
    Source,
    /// Where it goes.
    Target,
}

/// Something that goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: what the others are compared with.
    Nothing,
    /// The operator that leads is killed at an effect: `before checkpointing/freeze/0`.
    OperatorKilled(String),
    /// The operator's clock jumps by so many seconds.
    ClockJumps(i64),
    /// RabbitMQ is killed and started again.
    BrokerRestarts,
    /// RabbitMQ raises its memory alarm for 10 s.
    MemoryAlarm,
    /// All operators are cut off from the broker for so many seconds.
    OperatorCut(u64),
    /// A copy is cut off from the broker for so many seconds.
    CopyCut(End, u64),
    /// The API server is away for 20 s.
    ApiServerAway,
    /// A node's kubelet is killed, and started again 5 s later.
    KubeletKilled(End),
    /// As the kubelet, its container runtime.
    RuntimeKilled(End),
    /// A node's agent is killed.
    AgentKilled(End),
    /// A node loses power for 20 s.
    PowerOff(End),
    /// The target's disk is full until the migration has ended.
    DiskFull,
    /// The registry is away for 15 s.
    RegistryAway,
    /// The registry answers 500 for 15 s.
    RegistryFails,
    /// A copy's process is killed.
    ProcessKilled(End),
    /// Somebody deletes a copy's pod.
    PodDeleted(End),
    /// Somebody deletes the transfer Job.
    JobDeleted,
    /// Somebody deletes the Secret with the broker's address for 10 s.
    SecretDeleted,
    /// Somebody deletes the migration.
    MigrationDeleted,
    /// Somebody takes the migration's finalizer away and deletes it.
    MigrationForced,
    /// The user says that it is enough.
    Aborted,
}

/// From when on a migration has a target that can be harmed.
const WITH_TARGET: [&str; 3] = ["Restoring", "Replaying", "Finalizing"];
/// Before the checkpoint, after it, and at the switch.
const ALL_OVER: [&str; 3] = ["Checkpointing", "Restoring", "Finalizing"];
/// While the registry is of any use.
const CARRYING: [&str; 3] = ["Pending", "Checkpointing", "Transferring"];

impl Fault {
    /// All that are tried at three phases each.
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self::Nothing, Self::BrokerRestarts, Self::MemoryAlarm];
        for seconds in [1, 10, 90] {
            all.push(Self::OperatorCut(seconds));
            all.extend([End::Source, End::Target].map(|end| Self::CopyCut(end, seconds)));
        }
        all.push(Self::ApiServerAway);
        for of in [
            Self::KubeletKilled,
            Self::RuntimeKilled,
            Self::ProcessKilled,
            Self::PodDeleted,
            Self::PowerOff,
            Self::AgentKilled,
        ] {
            all.extend([of(End::Source), of(End::Target)]);
        }
        all.extend([
            Self::DiskFull,
            Self::RegistryAway,
            Self::RegistryFails,
            Self::JobDeleted,
            Self::SecretDeleted,
        ]);
        all.extend([
            Self::MigrationDeleted,
            Self::MigrationForced,
            Self::Aborted,
            Self::ClockJumps(3_600),
            Self::ClockJumps(-3_600),
        ]);
        all
    }

    /// In which phases it happens.
    pub fn phases(&self) -> &'static [&'static str] {
        match self {
            Self::Nothing | Self::OperatorKilled(_) => &["Pending"],
            Self::RegistryAway | Self::RegistryFails | Self::JobDeleted => &CARRYING,
            Self::DiskFull => &["Checkpointing", "Transferring", "Restoring"],
            Self::ProcessKilled(End::Target)
            | Self::PodDeleted(End::Target)
            | Self::CopyCut(End::Target, _) => &WITH_TARGET,
            _ => &ALL_OVER,
        }
    }

    /// It says something to do it without a migration beside it.
    pub fn has_control(&self) -> bool {
        match self {
            Self::BrokerRestarts
            | Self::MemoryAlarm
            | Self::CopyCut(End::Source, _)
            | Self::ApiServerAway
            | Self::KubeletKilled(_)
            | Self::RuntimeKilled(_)
            | Self::RegistryAway => true,
            Self::ProcessKilled(end) | Self::PodDeleted(end) | Self::PowerOff(end) => {
                *end == End::Source
            }
            _ => false,
        }
    }

    /// It may destroy the only copy of the state.
    pub fn destroys(&self) -> bool {
        matches!(self, Self::ProcessKilled(_) | Self::PodDeleted(_) | Self::PowerOff(_))
    }

    /// It may destroy it while the source alone has it.
    pub fn takes_the_source(&self) -> bool {
        let source = |end: &End| *end == End::Source;
        matches!(self, Self::ProcessKilled(end) | Self::PodDeleted(end) | Self::PowerOff(end) if source(end))
    }

    /// The broker ends connections, or itself, and delivers again what it has not heard was applied.
    pub fn delivers_again(&self) -> bool {
        matches!(self, Self::BrokerRestarts | Self::CopyCut(..))
    }

    /// It needs node agents, and transfer mode Direct.
    pub fn needs_agents(&self) -> bool {
        matches!(self, Self::AgentKilled(_))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |end: &End| if *end == End::Source { "source" } else { "target" };
        match self {
            Self::Nothing => write!(f, "nothing"),
            Self::OperatorKilled(at) => write!(f, "operator killed {at}"),
            Self::ClockJumps(seconds) => write!(f, "operator's clock jumps by {seconds} s"),
            Self::BrokerRestarts => write!(f, "broker restarts"),
            Self::MemoryAlarm => write!(f, "broker's memory alarm"),
            Self::OperatorCut(seconds) => write!(f, "operator cut from broker for {seconds} s"),
            Self::CopyCut(end, seconds) => write!(f, "{} cut from broker for {seconds} s", of(end)),
            Self::ApiServerAway => write!(f, "API server away for 20 s"),
            Self::KubeletKilled(end) => write!(f, "{}'s kubelet killed", of(end)),
            Self::RuntimeKilled(end) => write!(f, "{}'s CRI-O killed", of(end)),
            Self::AgentKilled(end) => write!(f, "{}'s agent killed", of(end)),
            Self::PowerOff(end) => write!(f, "{}'s node powered off", of(end)),
            Self::DiskFull => write!(f, "target's disk full"),
            Self::RegistryAway => write!(f, "registry away for 15 s"),
            Self::RegistryFails => write!(f, "registry answers 500 for 15 s"),
            Self::ProcessKilled(end) => write!(f, "{} process killed", of(end)),
            Self::PodDeleted(end) => write!(f, "{} pod deleted", of(end)),
            Self::JobDeleted => write!(f, "Job deleted"),
            Self::SecretDeleted => write!(f, "Secret deleted for 10 s"),
            Self::MigrationDeleted => write!(f, "migration deleted"),
            Self::MigrationForced => write!(f, "migration removed by force"),
            Self::Aborted => write!(f, "migration aborted"),
        }
    }
}
