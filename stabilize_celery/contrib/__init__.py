"""Integrations with other projects; each imports that project, and nothing else imports them."""
