#!/usr/bin/env bash
# What has become of a PBS job, in the words of snakemake: running, success or failed.
state=$(qstat -x -f "$1" 2>/dev/null) || { echo failed; exit; }
case "$state" in
    *"job_state = F"*) if [[ "$state" == *"Exit_status = 0"* ]]; then echo success; else echo failed; fi ;;
    *) echo running ;;
esac
