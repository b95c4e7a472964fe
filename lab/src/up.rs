//! `lab up`: check, build, start, wait. Whatever fails, nothing is left running.

use std::{
    fs,
    io::Read,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use crate::{
    cgroup::Layout,
    command::{run, run_with_input},
    component, configure, down,
    error::{Context, LabError, Result},
    lab::Lab,
    lock::Lock,
    machine::{Machine, Storage},
    oci::hex,
    parts::{self, Parts, remove},
    plan::{self, CONTROL, MAX_NODES},
    preflight,
    progress::Progress,
    record::{Places, Record},
    render, wait,
};

const READY: Duration = Duration::from_mins(2);

/// Brings a lab with `nodes` nodes up, or finds it up.
pub fn up(nodes: u8) -> Result<Lab> {
    let progress = Progress::new();
    preflight::root()?;
    if nodes == 0 || nodes > MAX_NODES {
        return Err(LabError::Unfit(format!("a lab has 1 to {MAX_NODES} nodes, not {nodes}")));
    }
    let _lock = Lock::take()?;
    if let Some(lab) = running(nodes)? {
        return Ok(lab);
    }
    let places = Places::from_environment();
    preflight::check(&places.cache, parts::incomplete(&places.cache)?)?;
    preflight::install_tools(&progress)?;
    remove(&places.logs())?;
    let parts = parts::ensure(&places.cache, &progress)?;
    start(nodes, &places, &parts, &progress).inspect_err(|_| {
        // The first error is the one that matters; `lab down` can be repeated.
        if let Err(error) = down::clear() {
            Progress::say(&format!("clearing up failed as well: {error}"));
        }
    })
}

/// The lab that runs already; what is left of one that doesn't is cleared.
fn running(nodes: u8) -> Result<Option<Lab>> {
    match Lab::open() {
        Ok(lab) if lab.nodes().len() == usize::from(nodes) => {
            nodes_ready(&lab)?;
            Progress::say("already up");
            Ok(Some(lab))
        }
        Ok(lab) => Err(LabError::Unfit(format!(
            "the lab runs with {} nodes; `cargo xtask lab down` first to have {nodes}",
            lab.nodes().len()
        ))),
        Err(LabError::NotRunning) => {
            down::clear()?;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn start(nodes: u8, places: &Places, parts: &Parts, progress: &Progress) -> Result<Lab> {
    let begun = Instant::now();
    let mut record = Record {
        cache: places.cache.clone(),
        nodes,
        password: password()?,
        machines: Vec::new(),
        complete: false,
    };
    progress.step("starting machines", || {
        record.save()?;
        configure::write(&record)?;
        parts.link_programs(&places.bin())?;
        start_machines(&mut record, places, parts)?;
        join_machines(&record)?;
        record.save()
    })?;
    let mut lab = Lab::of(record);
    progress.step("starting the control plane", || start_control(&lab, &parts.pause))?;
    progress.step("starting nodes", || start_nodes(&lab))?;
    progress.step("waiting for all components", || finish(&lab))?;
    lab = complete(&lab)?;
    Progress::say(&format!("up after {:.1} s", begun.elapsed().as_secs_f64()));
    Ok(lab)
}

fn complete(lab: &Lab) -> Result<Lab> {
    let record = Record { complete: true, ..lab.record().clone() };
    record.save()?;
    Ok(Lab::of(record))
}

fn start_machines(record: &mut Record, places: &Places, parts: &Parts) -> Result<()> {
    let layout = Layout::detect()?;
    let names =
        std::iter::once(CONTROL.to_owned()).chain(record.plan().into_iter().map(plan::Node::name));
    for name in names {
        let machine = Machine::start(
            &name,
            &layout,
            &Storage {
                rootfs: &parts.rootfs,
                bin: &places.bin(),
                data: &places.data(&name),
                log: &places.log(&name, "init"),
            },
        )?;
        record.machines.push(machine);
    }
    Ok(())
}

/// Lays the cables between the machines.
fn join_machines(record: &Record) -> Result<()> {
    let (Some((control, workers)), nodes) = (record.machines.split_first(), record.plan()) else {
        return Err(LabError::NotRunning);
    };
    let pids: Vec<_> = workers.iter().map(Machine::pid).collect();
    link(control, &plan::control_links(&nodes, &pids))?;
    for (node, machine) in nodes.iter().zip(workers) {
        link(machine, &plan::node_links(*node, &nodes))?;
    }
    Ok(())
}

pub(crate) fn link(machine: &Machine, batch: &str) -> Result<()> {
    let what = format!("connect the machine {}", machine.name);
    run_with_input(&what, machine.network_command("ip").args(["-batch", "-"]), batch)?;
    Ok(())
}

fn start_control(lab: &Lab, pause: &Path) -> Result<()> {
    let control = lab.control()?;
    for part in component::foundations() {
        control.launch(&part, &lab.log(CONTROL, part.name))?;
    }
    for node in lab.nodes() {
        lab.start(&node, "crio")?;
    }
    check_criu(lab)?;
    push_pause(lab, pause)?;
    let (begun, log) = (Instant::now(), lab.log(CONTROL, "kube-apiserver"));
    let server = lab.component(CONTROL, "kube-apiserver")?;
    wait::until("kube-apiserver", READY, &log, || {
        wait::alive(control, &server, begun, &log)?;
        Ok(run("ask", lab.kubectl()?.args(["get", "--raw", "/readyz"])).is_ok())
    })?;
    for part in ["kube-controller-manager", "kube-scheduler"] {
        lab.start(CONTROL, part)?;
    }
    let mut kubectl = lab.kubectl()?;
    kubectl.args(["apply", "-f", "-"]);
    run_with_input("create the cluster's Services", &mut kubectl, &render::cluster())?;
    lab.start(CONTROL, "coredns")
}

fn check_criu(lab: &Lab) -> Result<()> {
    let Some(node) = lab.nodes().into_iter().next() else { return Ok(()) };
    lab.exec(&node, &["criu", "check"]).map(|_| ()).map_err(|error| match error {
        LabError::Program { output, .. } => LabError::Unfit(format!(
            "CRIU cannot checkpoint processes on this kernel, so the lab is of no use here{output}"
        )),
        other => other,
    })
}

/// The image that holds a pod's namespaces open. The registry starts within a second;
/// skopeo runs in the control machine, where its name resolves.
fn push_pause(lab: &Lab, pause: &Path) -> Result<()> {
    lab.wait_for_port("registry", plan::REGISTRY_PORT, READY)?;
    let target = lab.record().places().etc(CONTROL).join("pause");
    run("copy the pause image", Command::new("cp").arg("-a").arg(pause).arg(&target))?;
    let destination = format!("docker://{}", render::pause_image());
    lab.exec(CONTROL, &["skopeo", "copy", "-q", "oci:/etc/shadow-lab/pause", &destination])?;
    Ok(())
}

fn start_nodes(lab: &Lab) -> Result<()> {
    for node in lab.nodes() {
        start_node(lab, &node)?;
    }
    // It wants a Node object to start with.
    lab.start(CONTROL, "kube-proxy")?;
    nodes_ready(lab)
}

/// Starts what needs the node's runtime, once that runs.
pub(crate) fn start_node(lab: &Lab, node: &str) -> Result<()> {
    let log = lab.log(node, "crio");
    let machine = lab.machine(node)?;
    wait::until(&format!("CRI-O on {node}"), READY, &log, || {
        let path = format!("/proc/{}/root/run/crio/crio.sock", machine.pid());
        Ok(Path::new(&path).exists())
    })?;
    lab.start(node, "kubelet")?;
    lab.start(node, "kube-proxy")
}

/// Waits for what serves last, and for the account that pods run as.
fn finish(lab: &Lab) -> Result<()> {
    lab.wait_for_port("rabbitmq", plan::AMQP_PORT, READY)?;
    lab.wait_for_port("rabbitmq", plan::MANAGEMENT_PORT, READY)?;
    lab.wait_for_port("coredns", 53, READY)?;
    let log = lab.log(CONTROL, "kube-controller-manager");
    wait::until("the default service account", READY, &log, || {
        Ok(run("ask", lab.kubectl()?.args(["get", "serviceaccount", "default"])).is_ok())
    })?;
    for machine in std::iter::once(CONTROL.to_owned()).chain(lab.nodes()) {
        for component in lab.parts_of(&machine)? {
            let log = lab.log(&machine, component.name);
            let what = format!("{} on {machine}", component.name);
            wait::until(&what, READY, &log, || lab.is_up(&machine, component.name))?;
        }
    }
    Ok(())
}

fn nodes_ready(lab: &Lab) -> Result<()> {
    for node in lab.nodes() {
        let log = lab.log(&node, "kubelet");
        wait::until(&format!("the node {node}"), READY, &log, || node_ready(lab, &node))?;
    }
    Ok(())
}

fn node_ready(lab: &Lab, node: &str) -> Result<bool> {
    let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
    let state = run("ask", lab.kubectl()?.args(["get", "node", node, "-o", path]));
    if state.is_ok_and(|state| state == "True") {
        return Ok(true);
    }
    thread::sleep(Duration::from_millis(100));
    Ok(false)
}

fn password() -> Result<String> {
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context(|| "read /dev/urandom".into())?;
    Ok(hex(&bytes))
}
