//! The XDP program that steers connections.
//!
//! `docs/kernel.md` says what it does with a packet. The parts that are plain
//! memory work ([`frame`], [`parse`], [`flows`]) also build on the host, where
//! their unit tests run; the rest needs the kernel's helpers and maps and is
//! compiled for BPF alone.
//!
//! The way of a packet: `fast` (plain packets of established flows, and what is
//! not ours), else `steer` (parse in full, whose is it) -> `open` (everything that changes state: new flows,
//! handshakes, closing) -> `forward` (rewrite and send); `icmp`, `fragment` and
//! `refuse` stand beside it.
#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod atomic;
pub mod flows;
pub mod frame;
pub mod parse;
pub mod plan;

#[cfg(target_arch = "bpf")]
pub mod count;
#[cfg(target_arch = "bpf")]
pub mod fast;
#[cfg(target_arch = "bpf")]
pub mod forward;
#[cfg(target_arch = "bpf")]
pub mod fragment;
#[cfg(target_arch = "bpf")]
pub mod icmp;
#[cfg(target_arch = "bpf")]
pub mod index;
#[cfg(target_arch = "bpf")]
pub mod local;
#[cfg(target_arch = "bpf")]
pub mod maps;
#[cfg(target_arch = "bpf")]
pub mod open;
#[cfg(target_arch = "bpf")]
pub mod refuse;
#[cfg(target_arch = "bpf")]
pub mod report;
#[cfg(target_arch = "bpf")]
pub mod select;
#[cfg(target_arch = "bpf")]
pub mod snat;
#[cfg(target_arch = "bpf")]
pub mod steer;
#[cfg(target_arch = "bpf")]
pub mod syn;
#[cfg(target_arch = "bpf")]
pub mod table;
#[cfg(target_arch = "bpf")]
pub mod verdict;
