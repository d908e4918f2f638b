//! The only place with SPI, locks, roles and PostgreSQL's parser. Knows nothing of the order of steps.

pub mod actions;
pub mod attempt;
pub mod bulk;
pub mod commands;
pub mod cost;
pub mod definition;
pub mod dependants;
pub mod expression;
pub mod files;
pub mod fingerprint;
pub mod kept;
pub mod lock;
pub mod relation;
pub mod role;
pub mod settings;
pub mod spi;
pub mod timeout;
pub mod version;
pub mod view_text;
pub mod volatility;
pub mod walk;
