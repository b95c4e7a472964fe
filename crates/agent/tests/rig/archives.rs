//! Checkpoint archives, good ones and others.

use serde_json::json;

/// One that CRI-O would write of the usual container: its pages are `size` bytes that follow from
/// `seed`.
pub fn good(size: usize, seed: u64) -> Vec<u8> {
    of("shop", "consumer-0", size, seed)
}

pub fn of(namespace: &str, pod: &str, size: usize, seed: u64) -> Vec<u8> {
    let mut tar = metadata(namespace, pod);
    add(&mut tar, "checkpoint/pages-1.img", &pages(size, seed));
    tar.into_inner().unwrap()
}

/// One with another entry after the pages.
pub fn with(name: &str, kind: tar::EntryType, extension: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = metadata("shop", "consumer-0");
    tar.append_pax_extensions(extension.iter().copied()).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(0);
    // `set_path` would refuse what is tried here.
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_cksum();
    tar.append(&header, std::io::empty()).unwrap();
    tar.into_inner().unwrap()
}

fn metadata(namespace: &str, pod: &str) -> tar::Builder<Vec<u8>> {
    let config = json!({ "rootfsImageName": "r/app:1", "runtime": "crun" });
    let spec = json!({ "annotations": {
        "io.kubernetes.pod.name": pod,
        "io.kubernetes.pod.namespace": namespace,
        "io.kubernetes.cri-o.ImageRepoDigests": "r/app@sha256:11",
    } });
    let mut tar = tar::Builder::new(Vec::new());
    add(&mut tar, "config.dump", config.to_string().as_bytes());
    add(&mut tar, "spec.dump", spec.to_string().as_bytes());
    tar
}

fn pages(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let words = (0..size.div_ceil(8)).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.collect()
}

fn add(tar: &mut tar::Builder<Vec<u8>>, name: &str, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, name, content).unwrap();
}
