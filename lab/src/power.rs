//! A node loses power, and gets it back: everything that ran is gone at once, its disk is not.

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    cgroup::Layout,
    error::{Context, Result},
    lab::Lab,
    machine::{Machine, Storage},
    parts::{self, remove},
    plan,
    progress::Progress,
    up::{link, start_node},
    wait,
};

const GONE: std::time::Duration = std::time::Duration::from_secs(30);

impl Lab {
    /// Ends everything on a node at once.
    pub fn power_off(&self, node: &str) -> Result<()> {
        let machine = self.machine(node)?;
        let pid = i32::try_from(machine.pid()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid.filter(|_| machine.is_alive()) {
            kill_process(pid, Signal::KILL).context(|| format!("power {node} off"))?;
        }
        let log = self.log(node, "init");
        wait::until(&format!("the end of {node}"), GONE, &log, || Ok(!machine.is_alive()))
    }

    /// Boots a node that was powered off. Whoever opened the lab before has to open it again.
    pub fn power_on(&self, node: &str) -> Result<()> {
        let mut record = self.record().clone();
        let places = record.places();
        let parts = parts::ensure(&places.cache, &Progress::new())?;
        remove(&places.etc(node).join("init.pid"))?;
        let booted = Machine::start(
            node,
            &Layout::detect()?,
            &Storage {
                rootfs: &parts.rootfs,
                bin: &places.bin(),
                data: &places.data(node),
                log: &places.log(node, "init"),
            },
        )?;
        let nodes = record.plan();
        for place in nodes.iter().filter(|it| it.name() == node) {
            link(self.control()?, &plan::cable_to(*place, booted.pid()))?;
            link(&booted, &plan::node_links(*place, &nodes))?;
        }
        for machine in record.machines.iter_mut().filter(|it| it.name == node) {
            *machine = booted.clone();
        }
        record.save()?;
        let lab = Lab::of(record);
        lab.start(node, "crio")?;
        start_node(&lab, node)
    }
}
