/* PID 1 of a machine in setup mode: gives its firmware the authenticated variables in /enrol, in the order in which they
 * may be given, and switches the machine off. What an operator does in the firmware's menu. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <unistd.h>

#define VARIABLES "/sys/firmware/efi/efivars"
/* Non-volatile, for boot services and run time, authenticated by time (UEFI specification 2.10, section 8.2). */
#define ATTRIBUTES 0x27

static void enrol(const char *name, const char *vendor)
{
	static unsigned char content[65536];
	char path[256];
	unsigned attributes = ATTRIBUTES;
	snprintf(path, sizeof path, "/enrol/%s.auth", name);
	int file = open(path, O_RDONLY);
	memcpy(content, &attributes, sizeof attributes);
	ssize_t got = file < 0 ? -1 : read(file, content + sizeof attributes, sizeof content - sizeof attributes);
	if (got <= 0) {
		printf("enrol: %s: no file\n", name);
		return;
	}
	snprintf(path, sizeof path, VARIABLES "/%s-%s", name, vendor);
	int variable = open(path, O_WRONLY | O_CREAT, 0644);
	/* One write is one call of SetVariable. */
	if (variable < 0 || write(variable, content, got + sizeof attributes) != (ssize_t)(got + sizeof attributes))
		printf("enrol: %s: refused: %m\n", name);
	else
		printf("enrol: %s: taken\n", name);
}

int main(void)
{
	mkdir("/sys", 0755);
	if (mount("sysfs", "/sys", "sysfs", 0, 0) || mount("efivarfs", VARIABLES, "efivarfs", 0, 0))
		printf("enrol: mounting: %m\n");
	enrol("db", "d719b2cb-3d3a-4596-a3bc-dad00e67656f");
	enrol("KEK", "8be4df61-93ca-11d2-aa0d-00e098032b8c");
	enrol("PK", "8be4df61-93ca-11d2-aa0d-00e098032b8c");
	fflush(stdout);
	sync();
	reboot(RB_POWER_OFF);
	return 1;
}
