/* PID 1 for the harness's own test: says what it finds, then does what is typed on the serial line.
 * Links statically, so that it needs nothing but a kernel. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <net/if.h>
#include <net/route.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static int say(const char *text)
{
	return write(1, text, strlen(text)) < 0;
}

/* The disk's first block holds a number of boots: reads it, adds one, writes it back. */
static void count_boot(void)
{
	char block[512] = {0}, line[64];
	int disk = open("/dev/vda", O_RDWR | O_SYNC);
	if (disk < 0) {
		say("test: no disk\n");
		return;
	}
	if (pread(disk, block, sizeof block, 0) != sizeof block)
		say("test: disk unreadable\n");
	block[0]++;
	if (pwrite(disk, block, sizeof block, 0) != sizeof block)
		say("test: disk unwritable\n");
	close(disk);
	snprintf(line, sizeof line, "test: boot %d of this disk\n", block[0]);
	say(line);
}

static void show_file(const char *path)
{
	char text[256] = "test: boot file: ";
	size_t used = strlen(text);
	int file = open(path, O_RDONLY);
	ssize_t got = file < 0 ? -1 : read(file, text + used, sizeof text - used - 1);
	if (got > 0)
		say(text);
	else
		say("test: no boot file\n");
	if (file >= 0)
		close(file);
}

static int set_address(int sock, const char *name, const char *address)
{
	struct ifreq request = {0};
	struct sockaddr_in *in = (struct sockaddr_in *)&request.ifr_addr;
	strncpy(request.ifr_name, name, IFNAMSIZ - 1);
	in->sin_family = AF_INET;
	inet_pton(AF_INET, address, &in->sin_addr);
	if (ioctl(sock, SIOCSIFADDR, &request))
		return 1;
	inet_pton(AF_INET, "255.255.255.0", &in->sin_addr);
	if (ioctl(sock, SIOCSIFNETMASK, &request) || ioctl(sock, SIOCGIFFLAGS, &request))
		return 1;
	request.ifr_flags |= IFF_UP;
	return ioctl(sock, SIOCSIFFLAGS, &request);
}

/* Answers every connection to port 7 with its first bytes, in a child of its own. */
static void serve_echo(void)
{
	struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(7)};
	int sock = socket(AF_INET, SOCK_STREAM, 0);
	if (set_address(sock, "eth0", "10.0.2.15") || bind(sock, (struct sockaddr *)&here, sizeof here) ||
	    listen(sock, 4)) {
		say("test: no network\n");
		return;
	}
	say("test: echo on port 7\n");
	if (fork())
		return;
	for (;;) {
		char data[512];
		int peer = accept(sock, 0, 0);
		ssize_t got = read(peer, data, sizeof data);
		if (got > 0 && write(peer, data, got) < 0)
			say("test: echo failed\n");
		close(peer);
	}
}

int main(void)
{
	char command[64];
	mkdir("/dev", 0755);
	mount("devtmpfs", "/dev", "devtmpfs", 0, 0);
	say("test: init is up\n");
	show_file("/etc/croft/boot.toml");
	count_boot();
	serve_echo();
	say("test: ready\n");
	for (;;) {
		ssize_t got = read(0, command, sizeof command - 1);
		command[got > 0 ? got : 0] = 0;
		if (strstr(command, "poweroff"))
			reboot(RB_POWER_OFF);
		else if (strstr(command, "reboot"))
			reboot(RB_AUTOBOOT);
		else if (strstr(command, "die"))
			return 1; /* the kernel panics when PID 1 ends */
		else
			pause();
	}
}
