//! What runs inside the application's statements: capture, and the image hash of verify.
