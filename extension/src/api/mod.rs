//! Every SQL function, one file per noun, thin.
use pgrx::prelude::*;
