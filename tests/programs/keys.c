// SPDX-License-Identifier: Apache-2.0
/*
 * keys native|int80 NAME: looks for the key NAME of type "user" in the session keyring, once by request_key and once by
 * keyctl, adds one of its own there, and prints for each what is in the key, or "errno N". int80: by 32-bit system calls.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SESSION (-3L) /* KEY_SPEC_SESSION_KEYRING */
#define SEARCH 10L
#define READ 11L

enum { ADD, REQUEST, CONTROL };
static const long numbers[2][3] = {{SYS_add_key, SYS_request_key, SYS_keyctl}, {286, 287, 288}};
static int old;

static long call(int which, long a, long b, long c, long d, long e)
{
	long result;

	if (!old)
		return syscall(numbers[0][which], a, b, c, d, e);
	asm volatile("int $0x80"
		     : "=a"(result)
		     : "a"(numbers[1][which]), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e)
		     : "memory", "r8", "r9", "r10", "r11");
	errno = (int)result < 0 ? -(int)result : 0;
	return (int)result;
}

static void show(long key, char *low)
{
	long n = key < 0 ? key : call(CONTROL, READ, key, (long)low, 100, 0);

	if (n < 0)
		printf("errno %d\n", errno);
	else
		printf("%.*s\n", (int)n, low);
}

int main(int argc, char **argv)
{
	/* a 32-bit call takes 32-bit pointers */
	char *low = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	char *type = low + 1024, *name = low + 2048, *own = low + 3072;

	if (argc < 3)
		return 64;
	old = !strcmp(argv[1], "int80");
	strcpy(type, "user");
	strcpy(name, argv[2]);
	strcpy(own, "own");
	show(call(REQUEST, (long)type, (long)name, 0, 0, 0), low);
	show(call(CONTROL, SEARCH, SESSION, (long)type, (long)name, 0), low);
	show(call(ADD, (long)type, (long)own, (long)own, 3, SESSION), low);
	return 0;
}
