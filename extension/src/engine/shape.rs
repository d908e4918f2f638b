//! STUB
use migrator_core::failure::Failure;
pub fn structure(_relation: u32) -> Result<String, Failure> { Ok(String::new()) }
