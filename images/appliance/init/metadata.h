/* What the guest asks the metadata server: its user data and its identity document. Runs in a child
 * of its own, one request after the other, blocking with time limits. */
#ifndef INIT_METADATA_H
#define INIT_METADATA_H

/* Fetches the user data to /run/user-data (0755) and prints the identity document on the console
 * between "smallstack: identity-begin" and "smallstack: identity-end". Returns an exit code: 0, or 1
 * if the document could not be had. No user data (404) is no failure. */
int metadata_fetch(void);

/* How /run/user-data is to be run: */
enum metadata_kind { METADATA_NONE, METADATA_SCRIPT, METADATA_PROGRAM };
enum metadata_kind metadata_user_data_kind(void);

#define METADATA_USER_DATA "/run/user-data"

#endif
