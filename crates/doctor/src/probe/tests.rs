//! Nodes that are folders.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use super::*;
use crate::facts::{Crio, Process};

const ID: &str = "0123456789abcdef0123456789abcdef";

/// A node with these files.
fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (path, text) in files {
        write(folder.path(), path, text);
    }
    folder
}

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// Programs that answer so, and a disk.
struct Programs(&'static [(&'static str, bool, &'static str)]);

impl Host for Programs {
    fn run(&self, command: &[&str]) -> Known<Option<Output>> {
        let line = command.join(" ");
        let found = self.0.iter().find(|(program, ..)| *program == line);
        Ok(found.map(|(_, success, text)| Output { success: *success, text: (*text).to_owned() }))
    }

    fn free(&self, _: &Path) -> Known<u64> {
        Ok(7)
    }
}

const GOOD: Programs = Programs(&[
    ("criu --version", true, "Version: 4.1.1\nGitID: v4.1.1\n"),
    ("criu check", true, "Warn  (criu/kerndat.c:1605): Can't\nLooks good.\n"),
    (
        "crun --root=/tmp/crun --version",
        true,
        "crun version 1.21\nspec: 1.0.0\n+SYSTEMD +CRIU +YAJL\n",
    ),
]);

#[test]
fn a_good_node_is_read_whole_and_survives_the_wire() {
    let node = tree(&[
        (
            "etc/crio/crio.conf",
            "[crio]\nroot = \"/data\"\n[crio.runtime]\nenable_criu_support = true\n",
        ),
        ("etc/criu/crun.conf", "# ours\ntcp-close\nskip-in-flight # too\nnetwork-lock skip\n"),
        ("sys/fs/cgroup/cgroup.controllers", "cpu memory"),
        (
            "proc/cpuinfo",
            "processor: 0\nflags\t\t: fpu sse2 avx\n\nprocessor: 1\nflags: fpu sse2\n",
        ),
        ("var/lib/kubelet/checkpoints/x", ""),
        ("data/x", ""),
    ]);
    let report = report(node.path(), &GOOD, None);
    assert_eq!(report.crio.as_ref().unwrap().criu, Some(true));
    assert_eq!(report.cgroup, Ok(2));
    assert_eq!(report.cpu, Ok(["fpu", "sse2"].map(Text::from).into()));
    assert_eq!((&report.checkpoints_free, &report.storage_free), (&Ok(7), &Ok(7)));
    assert_eq!(report.criu.check, Ok(None));
    assert!(report.crun.as_ref().unwrap().as_ref().unwrap().criu);
    let options = report.options.as_ref().unwrap();
    let named: Vec<&str> = options[&Text::from("crun.conf")].iter().map(Text::as_str).collect();
    assert_eq!(named, ["network-lock", "skip-in-flight", "tcp-close"]);
    let wire = serde_json::to_string(&report).unwrap();
    assert!(!wire.contains('\n'));
    assert_eq!(serde_json::from_str::<Report>(&wire).unwrap(), report);
}

#[test]
fn an_empty_node_says_of_each_fact_why_it_is_not_known() {
    let node = tree(&[]);
    let report = report(node.path(), &Programs(&[]), Some(ID));
    assert_eq!(report.crio, Ok(Crio::default()), "all defaults");
    assert!(report.options.unwrap().is_empty());
    assert_eq!((report.criu.version, report.crun), (Ok(None), Ok(None)));
    for (why, words) in [
        (report.criu.check.unwrap_err(), "criu is not installed"),
        (report.cgroup.unwrap_err(), "of neither version"),
        (report.cpu.unwrap_err(), "proc/cpuinfo: No such file"),
        (report.checkpoints_free.unwrap_err(), "/var/lib/kubelet/checkpoints, /var/lib/kubelet"),
        (report.process.unwrap().unwrap_err(), "proc: No such file"),
    ] {
        assert!(why.as_str().contains(words), "{why}");
    }
}

#[test]
fn a_criu_that_is_not_content_says_of_what() {
    let programs = Programs(&[
        ("criu --version", true, "Version: 3.15"),
        (
            "criu check",
            false,
            "Warn  (a): b\nError (criu/cr-check.c:1056): no repair\nError: then this\n",
        ),
        ("crun --root=/tmp/crun --version", false, "Failed to get state directory\n"),
    ]);
    let report = report(tree(&[]).path(), &programs, None);
    let complaint = Text::from("Error (criu/cr-check.c:1056): no repair");
    assert_eq!(report.criu.check, Ok(Some(complaint)));
    assert!(report.crun.unwrap_err().as_str().contains("state directory"));
}

#[test]
fn the_last_word_of_crios_files_counts() {
    let node = tree(&[
        (
            "etc/crio/crio.conf",
            "[crio.runtime]\nenable_criu_support = false\ndefault_runtime = \"runc\"\n\
             [crio.image]\nsignature_policy = \"/etc/p.json\"\nsignature_policy_dir = \"/etc/own\"\n",
        ),
        ("etc/crio/crio.conf.d/20.conf", "[crio.image]\nsignature_policy = \"\"\n"),
        ("etc/crio/crio.conf.d/10.conf", "[crio.runtime]\nenable_criu_support = true\n"),
        (
            "etc/crio/crio.conf.d/30.conf",
            "[crio.checkpoint_restore]\ncontainer_level_enabled = \"checkpoint_restore\"\n",
        ),
        ("etc/own/shop.json", "{}"),
        ("etc/crio/policies/elsewhere.json", "{}"),
    ]);
    let crio = settings::crio(node.path()).unwrap();
    assert_eq!((crio.criu, crio.policy), (Some(true), None));
    assert_eq!(crio.level, Some("checkpoint_restore".into()));
    assert_eq!(crio.runtime, Some("runc".into()));
    assert_eq!(crio.policies, [Text::from("shop")].into());
}

#[test]
fn a_broken_file_is_named_and_not_shown() {
    let node =
        tree(&[("etc/crio/crio.conf", "password = hunter2"), ("etc/containerd/config.toml", "[")]);
    let why = settings::crio(node.path()).unwrap_err();
    assert!(why.as_str().contains("etc/crio/crio.conf is not TOML: "), "{why}");
    assert!(!why.as_str().contains("hunter2"), "{why}");
    assert!(settings::containerd(node.path()).is_err());
}

#[test]
fn containerds_switch_is_found_in_both_versions_of_its_file() {
    for (plugin, switch, restore) in [
        ("io.containerd.cri.v1.runtime", "true", true),
        ("io.containerd.grpc.v1.cri", "true", true),
        ("io.containerd.cri.v1.runtime", "false", false),
        ("io.containerd.other", "true", false),
    ] {
        let text = format!(
            "version = 3\n[plugins.'{plugin}']\nenable_experimental_restore_via_create = {switch}\n"
        );
        let node = tree(&[("etc/containerd/config.toml", &text)]);
        assert_eq!(
            settings::containerd(node.path()).unwrap().restore,
            restore,
            "{plugin} {switch}"
        );
    }
}

#[test]
fn cgroups_of_version_1_with_some_of_2_beside_are_1() {
    let node = tree(&[
        ("sys/fs/cgroup/memory/cgroup.procs", ""),
        ("sys/fs/cgroup/unified/cgroup.controllers", ""),
    ]);
    assert_eq!(cgroup(node.path()), Ok(1));
}

/// A node with one process of the container that has these files open, and nothing else.
fn with_process(open: &[&str]) -> (tempfile::TempDir, PathBuf) {
    let node = tree(&[
        ("proc/41/cgroup", &format!("0::/../crio-conmon-{ID}.scope\n")),
        ("proc/41/fd/x", ""),
        ("proc/42/cgroup", &format!("3:pids:/\n0::/kubepods/crio-{ID}.scope\n")),
        ("proc/42/status", "Name:\tapp\nVmRSS:\t    2048 kB\n"),
        (
            "proc/42/mountinfo",
            "29 1 0:82 / / rw,relatime - overlay overlay rw\n30 29 8:1 / /d rw - ext4 /dev/a rw\n",
        ),
        (
            "proc/42/maps",
            "7f0-7f1 rw-s 00000000 00:0f 5 /dev/shm/a\n7f1-7f2 r-xp 00 08:01 9 /bin/app\n",
        ),
        ("proc/43/cgroup", "0::/kubepods/crio-ffff.scope\n"),
        ("proc/self/cgroup", &format!("0::/{ID}\n")),
    ]);
    let process = node.path().join("proc/42");
    fs::create_dir_all(process.join("fd")).unwrap();
    fs::create_dir_all(process.join("fdinfo")).unwrap();
    for (number, target) in open.iter().enumerate() {
        symlink(target, process.join(format!("fd/{number}"))).unwrap();
    }
    for (process, namespace) in [("1", "user:[1]"), ("42", "user:[1]")] {
        let ns = node.path().join("proc").join(process).join("ns");
        fs::create_dir_all(&ns).unwrap();
        symlink(namespace, ns.join("user")).unwrap();
    }
    (node, process)
}

#[test]
fn an_ordinary_process_has_nothing_to_be_told_of() {
    let open =
        ["/dev/null", "pipe:[7]", "/app/log", "anon_inode:[eventpoll]", "/dev/shm/a (deleted)"];
    let (node, _) = with_process(&open);
    let found = process::look(node.path(), ID).unwrap();
    assert_eq!(found, Process { count: 1, memory: 2048 * 1024, ..Process::default() });
}

#[test]
fn what_criu_can_not_dump_is_found() {
    let open = [
        "anon_inode:[io_uring]",
        "anon_inode:inotify",
        "anon_inode:[perf_event]",
        "/dev/pts/0",
        "/dev/nvidia0",
    ];
    let (node, process) = with_process(&open);
    // 0x52 is 82, the overlay; 0x800001 is 8:1.
    let watches =
        "pos:\t0\ninotify wd:2 ino:1 sdev:52 mask:2\ninotify wd:1 ino:2 sdev:800001 mask:2\n";
    fs::write(process.join("fdinfo/1"), watches).unwrap();
    fs::remove_file(process.join("ns/user")).unwrap();
    symlink("user:[2]", process.join("ns/user")).unwrap();
    let found = process::look(node.path(), ID).unwrap();
    assert!(found.io_uring && found.user_namespace);
    assert_eq!(found.overlay_watches, 1);
    assert_eq!(found.handles, [Text::from("perf_event")].into());
    assert_eq!(found.terminals, [Text::from("/dev/pts/0")].into());
    assert_eq!(found.devices, [Text::from("/dev/nvidia0")].into());
}

#[test]
fn a_terminal_whose_both_ends_are_the_processes_own_can_be_dumped() {
    let (node, process) = with_process(&["/dev/pts/ptmx", "/dev/pts/0", "/dev/pts/1"]);
    fs::write(process.join("fdinfo/0"), "pos:\t0\ntty-index:\t0\n").unwrap();
    let found = process::look(node.path(), ID).unwrap();
    assert_eq!(found.terminals, [Text::from("/dev/pts/1")].into());
}

#[test]
fn an_io_uring_that_is_only_mapped_is_found_too() {
    let (node, process) = with_process(&[]);
    let maps = "7f0-7f1 rw-s 00000000 00:0f 5 anon_inode:[io_uring]\n";
    fs::write(process.join("maps"), maps).unwrap();
    assert!(process::look(node.path(), ID).unwrap().io_uring);
}

#[test]
fn sockets_are_counted_by_whom_they_belong_to() {
    let open = ["socket:[10]", "socket:[11]", "socket:[12]", "socket:[13]", "socket:[14]"];
    let (node, process) = with_process(&open);
    let tcp = |state, inode| {
        format!("   0: 0100007F:1F90 0200007F:0050 {state} 0:0 0:0 0  0  0 {inode} 1 0\n")
    };
    let tcp = ["  sl  local\n".to_owned(), tcp("0A", 10), tcp("01", 11), tcp("01", 99)].concat();
    let unix = "Num RefCount Protocol Flags Type St Inode Path\n\
                000: 00000003 00000000 00000000 0001 03 12 /run/x\n000: 3 0 0 1 01 13\n";
    let protocols = "protocol size sockets memory\nMPTCP 1936 1 0\nTCP 2 5 0\nAF_VSOCK 1 0 -1\n";
    write(&process, "net/tcp", &tcp);
    write(&process, "net/unix", unix);
    write(&process, "net/protocols", protocols);
    let found = process::look(node.path(), ID).unwrap();
    assert_eq!((found.tcp_listening, found.tcp_established, found.unix_connected), (1, 1, 1));
    assert_eq!(found.unlisted_sockets, 1, "14");
    assert_eq!(found.protocols, [Text::from("MPTCP")].into());
}

#[test]
fn names_do_not_fill_the_report_and_move_no_cursor() {
    let open: Vec<String> = (0..100).map(|it| format!("/dev/\u{1b}[2J{it}")).collect();
    let (node, _) = with_process(&open.iter().map(String::as_str).collect::<Vec<_>>());
    let found = process::look(node.path(), ID).unwrap();
    assert_eq!(found.devices.len(), 8);
    assert!(found.devices.iter().all(|name| !name.as_str().contains('\u{1b}')));
}

#[test]
fn a_process_whose_files_can_not_be_listed_is_counted() {
    let (node, process) = with_process(&[]);
    fs::remove_dir(process.join("fd")).unwrap();
    assert_eq!(process::look(node.path(), ID).unwrap().unread, 1);
}

#[test]
fn a_container_that_is_not_there_is_said_so() {
    let (node, _) = with_process(&[]);
    let why = process::look(node.path(), &"e".repeat(32)).unwrap_err();
    assert!(why.as_str().contains("no process of container eeee"), "{why}");
    for odd in ["", "../../etc", "abc"] {
        assert!(process::look(node.path(), odd).unwrap_err().as_str().contains("is not the ID"));
    }
}
