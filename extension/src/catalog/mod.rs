//! The only place with SPI, locks, roles and PostgreSQL's parser. Knows nothing of the order of steps.

pub mod attempt;
pub mod dependants;
pub mod fingerprint;
pub mod lock;
pub mod relation;
pub mod role;
pub mod spi;
pub mod view_text;
