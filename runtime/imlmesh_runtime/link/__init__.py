"""The way to the broker: one contract (`base`), an in-process twin (`memory`), real MQTT (`mqtt`)."""
