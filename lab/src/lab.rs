//! A running lab, as tests, demo and evaluation see it.

use std::{
    fmt, fs,
    net::{SocketAddr, TcpStream},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    process::{Pid, Signal, kill_process},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::{
    cgroup::Layout,
    command,
    component::{self, Component},
    error::{Context, LabError, Result},
    machine::Machine,
    plan::{AMQP_PORT, API_PORT, CONTROL, CONTROL_IP, MANAGEMENT_PORT, Node, REGISTRY_PORT},
    record::{Places, Record},
    wait,
};

/// The broker's user in the lab.
pub(crate) const BROKER_USER: &str = "shadow";
const STOP: Duration = Duration::from_secs(30);

/// Where RabbitMQ is and who may use it.
#[derive(Clone)]
pub struct Endpoint {
    /// Its address, reachable from the control network ([`enter`]) and from pods.
    pub host: String,
    /// The AMQP port.
    pub amqp_port: u16,
    /// The port of the management API.
    pub management_port: u16,
    /// A user with all rights on the vhost `/`.
    pub user: String,
    /// That user's password.
    pub password: String,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, amqp_port, management_port, user, password: _ } = self;
        f.debug_struct("Endpoint")
            .field("host", host)
            .field("amqp_port", amqp_port)
            .field("management_port", management_port)
            .field("user", user)
            .finish_non_exhaustive()
    }
}

/// The running lab.
pub struct Lab {
    record: Record,
    kubeconfig: PathBuf,
}

/// Moves the calling thread, and the threads it starts from now on, into the lab's
/// control network, where the API server, the broker, the registry, Services and pods
/// are reachable. Call it before an async runtime starts its threads.
pub fn enter() -> Result<()> {
    Lab::open()?.enter()
}

impl Lab {
    /// Finds the running lab.
    pub fn open() -> Result<Self> {
        let record = Record::load()?.ok_or(LabError::NotRunning)?;
        let lab = Self::of(record);
        if lab.record.complete && lab.record.machines.iter().all(Machine::is_alive) {
            return Ok(lab);
        }
        Err(LabError::NotRunning)
    }

    pub(crate) fn of(record: Record) -> Self {
        Self { kubeconfig: record.places().kubeconfig(), record }
    }

    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    /// As [`enter`].
    pub fn enter(&self) -> Result<()> {
        let path = self.control()?.network();
        let network = fs::File::open(&path).context(|| format!("open {}", path.display()))?;
        move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
            .context(|| "enter the lab's network; are we root?".into())
    }

    /// The administrator's kubeconfig; its server is reachable from the control network.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The API server's URL, as reached from the control network and from pods.
    pub fn api_server(&self) -> String {
        format!("https://{CONTROL_IP}:{API_PORT}")
    }

    /// RabbitMQ.
    pub fn rabbitmq(&self) -> Endpoint {
        Endpoint {
            host: CONTROL_IP.to_string(),
            amqp_port: AMQP_PORT,
            management_port: MANAGEMENT_PORT,
            user: BROKER_USER.into(),
            password: self.record.password.clone(),
        }
    }

    /// The registry's `host:port` as reached from the control network. Pods, nodes and
    /// manifests name it [`crate::REGISTRY_NAME`].
    pub fn registry(&self) -> String {
        format!("{CONTROL_IP}:{REGISTRY_PORT}")
    }

    /// The names of the nodes.
    pub fn nodes(&self) -> Vec<String> {
        self.record.plan().into_iter().map(Node::name).collect()
    }

    /// A command that runs on a node, or on the `control` machine.
    pub fn command<S: AsRef<std::ffi::OsStr>>(&self, machine: &str, argv: &[S]) -> Result<Command> {
        Ok(self.machine(machine)?.command(argv))
    }

    /// Runs a command on a node, or on the `control` machine, and returns its output.
    pub fn exec<S: AsRef<std::ffi::OsStr>>(&self, machine: &str, argv: &[S]) -> Result<String> {
        let name = argv.first().map(|name| name.as_ref().to_string_lossy().into_owned());
        let what = format!("run {} on {machine}", name.unwrap_or_default());
        command::run(&what, &mut self.command(machine, argv)?)
    }

    /// kubectl as administrator. It sees the host's files.
    pub fn kubectl(&self) -> Result<Command> {
        let mut kubectl =
            self.control()?.network_command(self.record.places().bin().join("kubectl"));
        kubectl.env("KUBECONFIG", &self.kubeconfig);
        Ok(kubectl)
    }

    /// The names of a machine's components.
    pub fn components(&self, machine: &str) -> Result<Vec<&'static str>> {
        Ok(self.parts_of(machine)?.into_iter().map(|component| component.name).collect())
    }

    /// Whether a component's process lives.
    pub fn is_up(&self, machine: &str, component: &str) -> Result<bool> {
        let component = self.component(machine, component)?;
        Ok(!self.machine(machine)?.processes(&component).is_empty())
    }

    /// Kills a component's processes at once, as a crash would, and waits until they are
    /// gone. Containers live on.
    pub fn kill(&self, machine: &str, component: &str) -> Result<()> {
        self.end(machine, component, Signal::KILL)
    }

    /// Asks a component to end and waits until it has.
    pub fn stop(&self, machine: &str, component: &str) -> Result<()> {
        self.end(machine, component, Signal::TERM)
    }

    /// Starts a component that was stopped or killed. Its log is continued.
    pub fn start(&self, machine: &str, component: &str) -> Result<()> {
        let component = self.component(machine, component)?;
        let machine = self.machine(machine)?;
        if machine.processes(&component).is_empty() {
            machine.launch(&component, &self.log(&machine.name, component.name))?;
        }
        Ok(())
    }

    /// The number of cgroups below the lab. Migrations must not make it grow without end.
    pub fn cgroup_count(&self) -> Result<usize> {
        Ok(Layout::detect()?.count())
    }

    /// The log of a component.
    pub fn log(&self, machine: &str, component: &str) -> PathBuf {
        self.record.places().log(machine, component)
    }

    fn end(&self, machine: &str, component: &str, signal: Signal) -> Result<()> {
        let component = self.component(machine, component)?;
        let machine = self.machine(machine)?;
        for pid in machine.processes(&component) {
            let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { continue };
            match kill_process(pid, signal) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => {
                    return Err(error)
                        .context(|| format!("end {} on {}", component.name, machine.name));
                }
            }
        }
        let log = self.log(&machine.name, component.name);
        wait::until(
            &format!("the end of {} on {}", component.name, machine.name),
            STOP,
            &log,
            || Ok(machine.processes(&component).is_empty()),
        )
    }

    pub(crate) fn control(&self) -> Result<&Machine> {
        self.machine(CONTROL)
    }

    pub(crate) fn machine(&self, name: &str) -> Result<&Machine> {
        let machines = &self.record.machines;
        machines.iter().find(|machine| machine.name == name).ok_or_else(|| LabError::Unknown {
            what: "node",
            name: name.to_owned(),
            known: machines.iter().map(|m| m.name.as_str()).collect::<Vec<_>>().join(", "),
        })
    }

    /// The components of a machine, in starting order.
    pub(crate) fn parts_of(&self, machine: &str) -> Result<Vec<Component>> {
        let name = &self.machine(machine)?.name;
        let node = self.record.plan().into_iter().find(|node| node.name() == *name);
        Ok(node.map_or_else(component::control, component::node))
    }

    pub(crate) fn component(&self, machine: &str, name: &str) -> Result<Component> {
        let components = self.parts_of(machine)?;
        let known: Vec<_> = components.iter().map(|component| component.name).collect();
        let known = known.join(", ");
        components
            .into_iter()
            .find(|component| component.name == name)
            .ok_or_else(|| LabError::Unknown { what: "component", name: name.to_owned(), known })
    }

    /// Waits until a port on the control machine accepts connections.
    pub(crate) fn wait_for_port(&self, component: &str, port: u16, limit: Duration) -> Result<()> {
        let parts = self.component(CONTROL, component)?;
        let machine = self.control()?;
        let log = self.log(CONTROL, component);
        let begun = Instant::now();
        // A thread of its own: what enters a namespace stays there.
        thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                self.enter()?;
                let address = SocketAddr::from((CONTROL_IP, port));
                wait::until(&format!("{component} (port {port})"), limit, &log, || {
                    wait::alive(machine, &parts, begun, &log)?;
                    Ok(TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok())
                })
            });
            waiting.join().map_err(|_| LabError::Unfit("a waiting thread panicked".into()))?
        })
    }
}

/// The places of the lab that runs, or of the one that would be started.
pub(crate) fn places() -> Result<Places> {
    Ok(Record::load()?.map_or_else(Places::from_environment, |record| record.places()))
}
