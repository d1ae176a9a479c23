"""Configuration: settings as plain values, their validation, and the schedule that they define."""
