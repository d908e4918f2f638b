//! Connections: what a connection string and its surroundings mean, encryption, sessions and their settings,
//! and what went wrong in words a program can decide by. Knows nothing of changes.

pub mod certificate;
pub mod conninfo;
pub mod host_name;
pub mod keyword;
pub mod passfile;
pub mod redact;
pub mod servicefile;
pub mod session;
pub mod surroundings;
pub mod target;
pub mod tls;
pub mod trouble;
pub mod uri;
pub mod version_one;

pub use redact::{Secret, redact};
pub use session::{Canceller, Limits, Session};
pub use surroundings::Surroundings;
pub use target::Target;
pub use trouble::{Answer, Class, Trouble};
