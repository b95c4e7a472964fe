//! Checkpoint archives to push.
#![allow(dead_code, reason = "not every test binary has use for all of it")]

use std::io::Write as _;
use std::path::Path;

const CONFIG: &[u8] = br#"{"rootfsImageName":"r/app:1","runtime":"crun"}"#;
const SPEC: &[u8] = br#"{"annotations":{
    "io.kubernetes.cri-o.ImageRepoDigests":"r/app@sha256:11"}}"#;

/// Writes an archive whose pages are `size` bytes that follow from `seed`.
pub fn write(path: &Path, size: usize, seed: u64) {
    let mut state = seed | 1;
    let pages: Vec<u8> = (0..size.div_ceil(8))
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .collect();
    write_with(path, |tar| {
        add(tar, "checkpoint/pages-1.img", &pages);
    });
}

/// Writes an archive with a file of `size` zeros, which take no space on disk.
pub fn write_sparse(path: &Path, size: u64) {
    write_with(path, |_| {});
    // Over the end mark: the header, then a hole, then the end mark again.
    let mut file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    let end = file.metadata().unwrap().len() - 1024;
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(end)).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_path("checkpoint/pages-1.img").unwrap();
    header.set_size(size);
    header.set_cksum();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len(end + 512 + size.next_multiple_of(512) + 1024).unwrap();
}

fn write_with(path: &Path, more: impl FnOnce(&mut tar::Builder<std::fs::File>)) {
    let mut tar = tar::Builder::new(std::fs::File::create(path).unwrap());
    add(&mut tar, "config.dump", CONFIG);
    add(&mut tar, "spec.dump", SPEC);
    more(&mut tar);
    tar.finish().unwrap();
}

fn add(tar: &mut tar::Builder<std::fs::File>, name: &str, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, name, content).unwrap();
}
