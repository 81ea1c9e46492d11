/*
 * Tells the service manager how far the daemon is. Does nothing outside systemd or in a build
 * without libsystemd.
 */
#pragma once

void notify_ready(void);
void notify_stopping(void);
