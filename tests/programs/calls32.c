// SPDX-License-Identifier: Apache-2.0
/*
 * calls32 NR[:ARGUMENT,...]...: 32-bit system calls by their numbers, one after the other. An argument is a number, `@TEXT`
 * for the address of that text, or `#` for that of 128 zero bytes. Prints "ok" when all went through, or "errno N".
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* in the upper halves of the registers, which such a call leaves alone */
#define HIGH (1L << 40)

int main(int argc, char **argv)
{
	/* a 32-bit call takes 32-bit pointers */
	char *low = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	char *text = low + 128;

	for (int i = 1; i < argc; i++) {
		char *word = strchr(argv[i], ':');
		long a[5] = {HIGH, HIGH, HIGH, HIGH, HIGH}, result;
		int n = 0;

		if (word)
			*word++ = 0;
		for (word = word ? strtok(word, ",") : NULL; word && n < 5; word = strtok(NULL, ",")) {
			if (*word == '@') {
				strcpy(text, word + 1);
				a[n++] = (uint32_t)(uintptr_t)text | HIGH;
				text += strlen(text) + 1;
			} else if (*word == '#') {
				a[n++] = (uint32_t)(uintptr_t)low | HIGH;
			} else {
				a[n++] = (uint32_t)strtol(word, NULL, 0) | HIGH;
			}
		}
		asm volatile("int $0x80"
			     : "=a"(result)
			     : "a"(atol(argv[i])), "b"(a[0]), "c"(a[1]), "d"(a[2]), "S"(a[3]), "D"(a[4])
			     : "memory", "r8", "r9", "r10", "r11");
		if ((int)result < 0 && (int)result > -4096) {
			printf("errno %d\n", -(int)result);
			return 1;
		}
	}
	puts("ok");
	return 0;
}
