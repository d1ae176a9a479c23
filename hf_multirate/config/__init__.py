"""What the user asks for: settings as plain values, their checks, and the schedule that follows from them."""
