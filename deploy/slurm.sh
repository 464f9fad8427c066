#!/bin/bash
# A session as a job of SLURM that goes on in the next job when its time is up:
#
#   cd /data/session && sbatch /opt/streamprep/deploy/slurm.sh
#   touch streamprep.stop            # the session ends, and no job follows it
#
# Options belong into the lines below, in a copy of this file: the next job is submitted without those of a command line.
# SLURM sends SIGUSR1 to this script 15 minutes before the time is up, and SIGTERM when the job is cancelled. Either way
# the daemon finishes what its workers have and publishes; only after the first the next job is submitted. scancel gives it
# SLURM's KillWait (30 s). To have nodes only while there is work, run the daemon on a service node instead, with
# --executor slurm: see docs/cluster.md.
#SBATCH --job-name=streamprep
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@900
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=32G
#SBATCH --output=streamprep-%j.log
#SBATCH --open-mode=append
#SBATCH --no-requeue
# For a GPU: --gres=gpu:1
set -u
script=${STREAMPREP_SCRIPT:-$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p')}
umask 0027

"${STREAMPREP:-/opt/streamprep/bin/streamprep}" run --plain streamprep.toml &
daemon=$!
again=no asked=no
drain() { [ "$asked" = yes ] || kill -TERM "$daemon"; asked=yes; }  # a second signal would end it at once
trap 'again=yes; drain' USR1
trap 'again=no; drain' TERM
while kill -0 "$daemon" 2>/dev/null; do
  [ -e streamprep.stop ] && again=no && drain
  sleep 5 & wait $!  # a signal ends wait, and not sleep
done
wait "$daemon"; code=$?

# Any other code than 0 needs a person, and no further job.
if [ "$again" = yes ] && [ "$code" = 0 ]; then
  sbatch "$script"
fi
exit "$code"
