//! Benchmarks: figures with the floor or rival of the same run beside them.
//!
//! Nothing here decides over a build: times depend on the machine. A figure whose
//! packets did not go the way that it names is an error instead.

pub mod ajp;
pub mod chaos;
pub mod clock;
pub mod figure;
pub mod flows;
pub mod frames;
pub mod http;
pub mod idle;
pub mod rig;
pub mod rivals;
pub mod scale;
pub mod session_faults;
pub mod sessions;
pub mod tcp;
pub mod veth;
pub mod world;
pub mod xdp;
